/*
 * COUNT getppid calls on one CPU, as fast as they go or PER_SECOND of them a second.
 *
 *   syscall_load CPU COUNT [PER_SECOND]
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { NS_PER_S = 1000000000 };

static void sleep_until(const struct timespec *start, long long after_ns)
{
	long long ns = start->tv_nsec + after_ns;
	struct timespec wake = { start->tv_sec + ns / NS_PER_S, ns % NS_PER_S };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL) != 0)
		continue;
}

int main(int argc, char **argv)
{
	struct timespec start;
	long long count, period_ns;
	cpu_set_t cpus;

	if (argc < 3) {
		fprintf(stderr, "usage: syscall_load CPU COUNT [PER_SECOND]\n");
		return 2;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[1]), &cpus);
	if (sched_setaffinity(0, sizeof cpus, &cpus) < 0) {
		perror("sched_setaffinity");
		return 1;
	}
	count = atoll(argv[2]);
	period_ns = argc > 3 ? NS_PER_S / atoll(argv[3]) : 0;
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (long long i = 0; i < count; i++) {
		if (period_ns)
			sleep_until(&start, i * period_ns);
		syscall(SYS_getppid);
	}
	return 0;
}
