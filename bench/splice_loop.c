/*
 * The least work that a recorder can do: ring -> pipe -> file by splice only, one ring after the
 * other.  It keeps padding, reads no header and writes no index.
 *
 *   splice_loop [-w] RING OUT [RING OUT]...
 *
 * -w: start writing early and drop the written pages, as a recorder must to spare the page cache.
 * Prints on stdout: bytes drained, user and system CPU microseconds of the loop.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { PIPE_BYTES = 1 << 20, STRETCH_BYTES = 8 << 20 };

static int writes_behind;

static int fail(const char *what)
{
	perror(what);
	return -1;
}

/* Empty the pipe, which holds pending bytes, into out. */
static int pour(int pipe_end, int out, ssize_t pending)
{
	while (pending > 0) {
		ssize_t moved = splice(pipe_end, NULL, out, NULL, pending, SPLICE_F_MOVE);

		if (moved <= 0)
			return fail("splice to the file");
		pending -= moved;
	}
	return 0;
}

/* Start writing the last whole stretch out; wait for the one before and drop it. */
static void write_behind(int out, long long total)
{
	long long begin = total / STRETCH_BYTES * STRETCH_BYTES - STRETCH_BYTES;
	long long before = begin - STRETCH_BYTES;

	sync_file_range(out, begin, STRETCH_BYTES, SYNC_FILE_RANGE_WRITE);
	if (before < 0)
		return;
	sync_file_range(out, before, STRETCH_BYTES,
			SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
				SYNC_FILE_RANGE_WAIT_AFTER);
	posix_fadvise(out, before, STRETCH_BYTES, POSIX_FADV_DONTNEED);
}

/* Returns the bytes drained, or -1.  Only whole sub-buffers come by splice: EAGAIN is the end. */
static long long drain(int ring, const int ends[2], int out)
{
	long long total = 0;

	for (;;) {
		ssize_t got = splice(ring, NULL, ends[1], NULL, PIPE_BYTES,
				     SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

		if (got == 0 || (got < 0 && errno == EAGAIN))
			return total;
		if (got < 0)
			return fail("splice from the ring");
		if (pour(ends[0], out, got) < 0)
			return -1;
		total += got;
		if (writes_behind && total / STRETCH_BYTES > (total - got) / STRETCH_BYTES)
			write_behind(out, total);
	}
}

static long long microseconds(struct timeval time)
{
	return time.tv_sec * 1000000LL + time.tv_usec;
}

int main(int argc, char **argv)
{
	struct rusage before, after;
	long long total = 0;
	int ends[2];

	if (argc > 1 && strcmp(argv[1], "-w") == 0) {
		writes_behind = 1;
		argv++;
		argc--;
	}
	if (argc < 3 || argc % 2 == 0) {
		fprintf(stderr, "usage: splice_loop [-w] RING OUT [RING OUT]...\n");
		return 2;
	}
	if (pipe(ends) < 0 || fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES) < 0)
		return fail("pipe") != 0;
	getrusage(RUSAGE_SELF, &before);
	for (int i = 1; i < argc; i += 2) {
		int ring = open(argv[i], O_RDONLY | O_NONBLOCK);
		int out = open(argv[i + 1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
		long long drained;

		if (ring < 0 || out < 0)
			return fail(argv[ring < 0 ? i : i + 1]) != 0;
		drained = drain(ring, ends, out);
		if (drained < 0)
			return 1;
		total += drained;
		close(ring);
		close(out);
	}
	getrusage(RUSAGE_SELF, &after);
	printf("%lld %lld %lld\n", total,
	       microseconds(after.ru_utime) - microseconds(before.ru_utime),
	       microseconds(after.ru_stime) - microseconds(before.ru_stime));
	return 0;
}
