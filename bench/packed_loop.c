/*
 * The least work that a recorder of packed data can do in lttd's way: read whole sub-buffers of a
 * ring into memory, look at each header, write headers and contents without padding, and an index
 * entry of 72 bytes for each; one ring after the other, in one thread.
 *
 *   packed_loop SUBBUFFER_KIB RING OUT [RING OUT]...
 *
 * Prints on stdout as splice_loop does: bytes read, user and system CPU microseconds of the loop.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
	TAKE_BYTES = 4 << 20,
	WRITE_BYTES = 1 << 20,
	VECTORS = 1024, /* IOV_MAX */
	ENTRY_BYTES = 72,
	HEADER_BYTES = 16,
	AHEAD_BYTES = 64 << 20,
};

static size_t subbuffer_bytes;
static char *memory;
static struct iovec *vectors;
static uint64_t *entries;

static int fail(const char *what)
{
	perror(what);
	return -1;
}

/* Read at most TAKE_BYTES; return the number of sub-buffers.  The last one may be unfinished. */
static size_t take(int ring)
{
	size_t most = TAKE_BYTES / subbuffer_bytes, count = 0;

	for (size_t i = 0; i < most; i++)
		vectors[i] = (struct iovec){ memory + i * subbuffer_bytes, subbuffer_bytes };
	while (count < most) {
		size_t some = most - count < VECTORS ? most - count : VECTORS;
		ssize_t got = readv(ring, vectors + count, some);

		if (got <= 0)
			break;
		count += (got + subbuffer_bytes - 1) / subbuffer_bytes;
		if ((size_t)got < some * subbuffer_bytes)
			break;
	}
	return count;
}

/* Return the bytes of header and content, and of the count of missed events after them. */
static size_t payload_bytes(const char *subbuffer)
{
	uint64_t commit;

	memcpy(&commit, subbuffer + 8, sizeof(commit));
	return HEADER_BYTES + (commit & ((1 << 27) - 1)) + (commit >> 30 & 1) * 8;
}

/* Write what take() read, at *end, which moves.  Return 0, or -1 after an error. */
static int put(int out, size_t count, off_t *end)
{
	size_t waiting = 0, waiting_bytes = 0;

	for (size_t i = 0; i < count; i++) {
		char *subbuffer = memory + i * subbuffer_bytes;
		size_t bytes = payload_bytes(subbuffer);
		uint64_t *entry = entries + i * ENTRY_BYTES / 8;

		entry[0] = __builtin_bswap64(*end + waiting_bytes);
		entry[1] = entry[2] = __builtin_bswap64(bytes * 8);
		memcpy(entry + 3, subbuffer, 8);
		entry[3] = entry[4] = __builtin_bswap64(entry[3]);
		vectors[waiting++] = (struct iovec){ subbuffer, bytes };
		waiting_bytes += bytes;
		if (waiting < VECTORS && waiting_bytes + subbuffer_bytes <= WRITE_BYTES &&
		    i + 1 < count)
			continue;
		if (pwritev(out, vectors, waiting, *end) != (ssize_t)waiting_bytes)
			return fail("write");
		*end += waiting_bytes;
		waiting = waiting_bytes = 0;
	}
	return 0;
}

/* Returns the bytes read, or -1. */
static long long drain(int ring, int out, int index)
{
	long long total = 0;
	off_t end = 0, allocated = 0;
	size_t count;

	while ((count = take(ring)) > 0) {
		if (end + TAKE_BYTES > allocated) {
			fallocate(out, FALLOC_FL_KEEP_SIZE, end, AHEAD_BYTES);
			allocated = end + AHEAD_BYTES;
		}
		if (put(out, count, &end) < 0)
			return -1;
		if (write(index, entries, count * ENTRY_BYTES) < 0)
			return fail("write the index");
		total += (long long)count * subbuffer_bytes;
	}
	return ftruncate(out, end) < 0 ? fail("truncate") : total;
}

static long long microseconds(struct timeval time)
{
	return time.tv_sec * 1000000LL + time.tv_usec;
}

static int drain_file(const char *from, const char *to, long long *total)
{
	int ring = open(from, O_RDONLY | O_NONBLOCK);
	int out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	char name[4096];
	long long drained;
	int index;

	snprintf(name, sizeof(name), "%s.idx", to);
	index = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (ring < 0 || out < 0 || index < 0)
		return fail(ring < 0 ? from : to);
	drained = drain(ring, out, index);
	*total += drained;
	close(ring);
	close(out);
	close(index);
	return drained < 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
	struct rusage before, after;
	long long total = 0;

	if (argc < 4 || argc % 2 != 0 || (subbuffer_bytes = atol(argv[1]) << 10) == 0) {
		fprintf(stderr, "usage: packed_loop SUBBUFFER_KIB RING OUT [RING OUT]...\n");
		return 2;
	}
	memory = malloc(TAKE_BYTES);
	vectors = calloc(TAKE_BYTES / subbuffer_bytes, sizeof(*vectors));
	entries = calloc(TAKE_BYTES / subbuffer_bytes, ENTRY_BYTES);
	if (!memory || !vectors || !entries)
		return fail("memory") != 0;
	memset(memory, 1, TAKE_BYTES); /* lttd's memory is in use, too, when it has recorded */
	getrusage(RUSAGE_SELF, &before);
	for (int i = 2; i < argc; i += 2) {
		if (drain_file(argv[i], argv[i + 1], &total) < 0)
			return 1;
	}
	getrusage(RUSAGE_SELF, &after);
	printf("%lld %lld %lld\n", total,
	       microseconds(after.ru_utime) - microseconds(before.ru_utime),
	       microseconds(after.ru_stime) - microseconds(before.ru_stime));
	return 0;
}
