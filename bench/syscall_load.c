/*
 * COUNT getppid calls on one CPU, as fast as they go; with a pause after each BURST of them.
 *
 *   syscall_load CPU COUNT [BURST PAUSE_US]
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long long count, burst;
	useconds_t pause_us;
	cpu_set_t cpus;

	if (argc != 3 && argc != 5) {
		fprintf(stderr, "usage: syscall_load CPU COUNT [BURST PAUSE_US]\n");
		return 2;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[1]), &cpus);
	if (sched_setaffinity(0, sizeof cpus, &cpus) < 0) {
		perror("sched_setaffinity");
		return 1;
	}
	count = atoll(argv[2]);
	burst = argc == 5 ? atoll(argv[3]) : count;
	pause_us = argc == 5 ? atoi(argv[4]) : 0;
	for (long long done = 0; done < count; done += burst) {
		for (long long i = 0; i < burst; i++)
			syscall(SYS_getppid);
		if (pause_us)
			usleep(pause_us);
	}
	return 0;
}
