/*
 * COUNT getppid calls on one CPU, as fast as they go.
 *
 *   syscall_load CPU COUNT
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long long count;
	cpu_set_t cpus;

	if (argc != 3) {
		fprintf(stderr, "usage: syscall_load CPU COUNT\n");
		return 2;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[1]), &cpus);
	if (sched_setaffinity(0, sizeof cpus, &cpus) < 0) {
		perror("sched_setaffinity");
		return 1;
	}
	count = atoll(argv[2]);
	for (long long i = 0; i < count; i++)
		syscall(SYS_getppid);
	return 0;
}
