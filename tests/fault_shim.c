/*
 * Fails one system call of a program: the Nth of a name, on files below given places.
 *
 *   LTTD_FAULT=pwritev2:10:28     the 10th pwritev2 fails with errno 28; "short" instead of a number
 *                                 makes it do half of what was asked for
 *   LTTD_FAULT_BELOW=/a:/b:pipe:  which files count, by the begin of what /proc/self/fd shows
 *   LTTD_FAULT_FIRED=/tmp/x       is created when the call has failed
 *
 * For LD_PRELOAD.  Names are those that strace prints.  A close that fails closes all the same.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char wanted[32];
static long nth;
static int fault; /* an errno; -1: short */
static char below[4 * PATH_MAX];
static atomic_long seen;

__attribute__((constructor)) static void set_up(void)
{
	const char *what = getenv("LTTD_FAULT"), *where = getenv("LTTD_FAULT_BELOW");
	char how[16];

	if (!what || !where || sscanf(what, "%31[^:]:%ld:%15s", wanted, &nth, how) != 3)
		return;
	fault = strcmp(how, "short") ? atoi(how) : -1;
	snprintf(below, sizeof below, "%s", where);
}

static int is_below(const char *path)
{
	char places[sizeof below], *rest = places, *place;

	strcpy(places, below);
	/* A place that ends with a colon in /proc, such as pipe:[123], is written without it. */
	while ((place = strsep(&rest, ":")))
		if (*place && !strncmp(path, place, strlen(place)))
			return 1;
	return 0;
}

static int path_of(int fd, char *path)
{
	char link[64];
	ssize_t length;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = syscall(SYS_readlink, link, path, PATH_MAX - 1);
	if (length < 0)
		return 0;
	path[length] = 0;
	return 1;
}

/* Return whether this call is the one; *what* it is on: fd, or a path relative to it. */
static int hit(const char *name, int fd, const char *path)
{
	char whole[2 * PATH_MAX], directory[PATH_MAX];
	const char *fired = getenv("LTTD_FAULT_FIRED");
	int saved = errno, mark;

	if (strcmp(name, wanted))
		return 0;
	if (path && *path == '/')
		snprintf(whole, sizeof whole, "%s", path);
	else if (fd == AT_FDCWD ? !getcwd(directory, sizeof directory) : !path_of(fd, directory))
		goto no;
	else
		snprintf(whole, sizeof whole, "%s%s%s", directory, path ? "/" : "", path ? path : "");
	if (!is_below(whole) || atomic_fetch_add(&seen, 1) + 1 != nth)
		goto no;
	if (fired) {
		mark = syscall(SYS_openat, AT_FDCWD, fired, O_CREAT | O_WRONLY, 0644);
		syscall(SYS_write, mark, whole, strlen(whole));
		syscall(SYS_close, mark);
	}
	return 1;
no:
	errno = saved;
	return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAILS(call, fd, path, result)              \
	do {                                       \
		if (hit(call, fd, path)) {         \
			if (fault > 0) {           \
				errno = fault;     \
				return result;     \
			}                          \
			is_short = 1;              \
		}                                  \
	} while (0)

/* Calls that move bytes: a short one does half. */
#define MOVES(type, name, call, params, fd, size, ...)       \
	type name params                                     \
	{                                                    \
		int is_short __attribute__((unused)) = 0;                            \
		FAILS(call, fd, NULL, -1);                   \
		if (is_short && size > 1)                    \
			size /= 2;                           \
		return REAL(name)(__VA_ARGS__);              \
	}

MOVES(ssize_t, read, "read", (int fd, void *to, size_t size), fd, size, fd, to, size)
MOVES(ssize_t, write, "write", (int fd, const void *from, size_t size), fd, size, fd, from, size)
MOVES(ssize_t, pread64, "pread64", (int fd, void *to, size_t size, off64_t at), fd, size, fd, to, size, at)
MOVES(ssize_t, pwrite64, "pwrite64", (int fd, const void *from, size_t size, off64_t at), fd, size, fd, from, size, at)
MOVES(ssize_t, splice, "splice", (int in, off64_t *at, int out, off64_t *to, size_t size, unsigned flags), in, size, in, at, out, to, size, flags)
MOVES(ssize_t, copy_file_range, "copy_file_range", (int in, off64_t *at, int out, off64_t *to, size_t size, unsigned flags), out, size, in, at, out, to, size, flags)

/* Calls with vectors: a short one does half of the first. */
#define GATHERS(name, call, params, fd, vectors, count, ...)              \
	ssize_t name params                                               \
	{                                                                 \
		int is_short __attribute__((unused)) = 0;                                         \
		struct iovec first;                                       \
		FAILS(call, fd, NULL, -1);                                \
		if (is_short && count > 0) {                              \
			first = *vectors;                                 \
			first.iov_len = first.iov_len > 1 ? first.iov_len / 2 : first.iov_len; \
			vectors = &first;                                 \
			count = 1;                                        \
		}                                                         \
		return REAL(name)(__VA_ARGS__);                           \
	}

GATHERS(readv, "readv", (int fd, const struct iovec *vectors, int count), fd, vectors, count, fd, vectors, count)
GATHERS(preadv64v2, "preadv", (int fd, const struct iovec *vectors, int count, off64_t at, int flags), fd, vectors, count, fd, vectors, count, at, flags)
GATHERS(pwritev64v2, flags ? "pwritev2" : "pwritev", (int fd, const struct iovec *vectors, int count, off64_t at, int flags), fd, vectors, count, fd, vectors, count, at, flags)
GATHERS(pwritev2, "pwritev2", (int fd, const struct iovec *vectors, int count, off_t at, int flags), fd, vectors, count, fd, vectors, count, at, flags)

/* Calls on a descriptor that do or do not. */
#define DOES(name, call, params, fd, path, ...)       \
	int name params                               \
	{                                             \
		int is_short __attribute__((unused)) = 0;                     \
		FAILS(call, fd, path, -1);            \
		return REAL(name)(__VA_ARGS__);       \
	}

DOES(fdatasync, "fdatasync", (int fd), fd, NULL, fd)
DOES(fsync, "fsync", (int fd), fd, NULL, fd)
DOES(syncfs, "syncfs", (int fd), fd, NULL, fd)
DOES(ftruncate64, "ftruncate", (int fd, off64_t size), fd, NULL, fd, size)
DOES(fallocate, "fallocate", (int fd, int mode, off_t at, off_t size), fd, NULL, fd, mode, at, size)
DOES(sync_file_range, "sync_file_range", (int fd, off64_t at, off64_t size, unsigned flags), fd, NULL, fd, at, size, flags)
DOES(flock, "flock", (int fd, int operation), fd, NULL, fd, operation)
DOES(fstat64, "fstat", (int fd, struct stat64 *to), fd, NULL, fd, to)
DOES(fstatat64, "newfstatat", (int fd, const char *path, struct stat64 *to, int flags), fd, path, fd, path, to, flags)
DOES(stat64, "newfstatat", (const char *path, struct stat64 *to), AT_FDCWD, path, path, to)
DOES(lstat64, "newfstatat", (const char *path, struct stat64 *to), AT_FDCWD, path, path, to)
DOES(rename, "rename", (const char *path, const char *to), AT_FDCWD, path, path, to)
DOES(renameat, "rename", (int fd, const char *path, int to_fd, const char *to), fd, path, fd, path, to_fd, to)
DOES(unlink, "unlink", (const char *path), AT_FDCWD, path, path)
DOES(unlinkat, flags & AT_REMOVEDIR ? "rmdir" : "unlink", (int fd, const char *path, int flags), fd, path, fd, path, flags)
DOES(rmdir, "rmdir", (const char *path), AT_FDCWD, path, path)
DOES(mkdir, "mkdir", (const char *path, mode_t mode), AT_FDCWD, path, path, mode)
DOES(mkdirat, "mkdir", (int fd, const char *path, mode_t mode), fd, path, fd, path, mode)
DOES(inotify_add_watch, "inotify_add_watch", (int fd, const char *path, uint32_t mask), AT_FDCWD, path, fd, path, mask)

off64_t lseek64(int fd, off64_t at, int whence)
{
	int is_short __attribute__((unused)) = 0;

	FAILS("lseek", fd, NULL, -1);
	return REAL(lseek64)(fd, at, whence);
}

int close(int fd)
{
	int hits = hit("close", fd, NULL), result = REAL(close)(fd);

	if (hits && fault > 0) {
		errno = fault;
		return -1;
	}
	return result;
}

static mode_t mode_of(int flags, va_list more)
{
	return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
}

int open64(const char *path, int flags, ...)
{
	int is_short __attribute__((unused)) = 0;
	va_list more;
	mode_t mode;

	va_start(more, flags);
	mode = mode_of(flags, more);
	va_end(more);
	FAILS("openat", AT_FDCWD, path, -1);
	return REAL(open64)(path, flags, mode);
}

int openat64(int fd, const char *path, int flags, ...)
{
	int is_short __attribute__((unused)) = 0;
	va_list more;
	mode_t mode;

	va_start(more, flags);
	mode = mode_of(flags, more);
	va_end(more);
	FAILS("openat", fd, path, -1);
	return REAL(openat64)(fd, path, flags, mode);
}

FILE *fopen64(const char *path, const char *mode)
{
	int is_short __attribute__((unused)) = 0;

	FAILS("openat", AT_FDCWD, path, NULL);
	return REAL(fopen64)(path, mode);
}

DIR *opendir(const char *path)
{
	int is_short __attribute__((unused)) = 0;

	FAILS("openat", AT_FDCWD, path, NULL);
	return REAL(opendir)(path);
}

struct dirent64 *readdir64(DIR *directory)
{
	int is_short __attribute__((unused)) = 0;

	FAILS("getdents64", dirfd(directory), NULL, NULL);
	return is_short ? NULL : REAL(readdir64)(directory);
}

int ioctl(int fd, unsigned long request, ...)
{
	int is_short __attribute__((unused)) = 0;
	va_list more;
	void *argument;

	va_start(more, request);
	argument = va_arg(more, void *);
	va_end(more);
	FAILS("ioctl", fd, NULL, -1);
	return REAL(ioctl)(fd, request, argument);
}

int fcntl64(int fd, int command, ...)
{
	int is_short __attribute__((unused)) = 0;
	va_list more;
	void *argument;

	va_start(more, command);
	argument = va_arg(more, void *);
	va_end(more);
	FAILS("fcntl", fd, NULL, -1);
	return REAL(fcntl64)(fd, command, argument);
}

void *mmap64(void *at, size_t size, int protection, int flags, int fd, off64_t offset)
{
	int is_short __attribute__((unused)) = 0;

	if (fd >= 0)
		FAILS("mmap", fd, NULL, MAP_FAILED);
	return REAL(mmap64)(at, size, protection, flags, fd, offset);
}

int epoll_wait(int fd, struct epoll_event *to, int most, int timeout)
{
	int is_short __attribute__((unused)) = 0;

	FAILS("epoll_wait", fd, NULL, -1);
	return is_short ? 0 : REAL(epoll_wait)(fd, to, most, timeout);
}

int pipe2(int fds[2], int flags)
{
	int is_short __attribute__((unused)) = 0;

	if (strstr(below, "pipe"))
		FAILS("pipe2", AT_FDCWD, below, -1);
	return REAL(pipe2)(fds, flags);
}

/* For ctypes: openat2 has no function of its own. */
long syscall(long number, ...)
{
	static long (*real)(long, ...);
	int is_short __attribute__((unused)) = 0;
	va_list more;
	long a[6];

	va_start(more, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(more, long);
	va_end(more);
	if (!real)
		real = dlsym(RTLD_NEXT, "syscall");
	if (number == SYS_openat2)
		FAILS("openat2", a[0], (const char *)a[1], -1);
	return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
