/*
 * Two processes send one byte to and fro over two pipes; print the seconds that COUNT rounds took.
 *
 *   pingpong COUNT
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void pass_on(int from, int to)
{
	char byte;

	if (read(from, &byte, 1) != 1 || write(to, &byte, 1) != 1)
		_exit(1);
}

int main(int argc, char **argv)
{
	struct timespec begin, end;
	int there[2], back[2], status;
	long count;

	if (argc != 2) {
		fprintf(stderr, "usage: pingpong COUNT\n");
		return 2;
	}
	count = atol(argv[1]);
	if (pipe(there) < 0 || pipe(back) < 0) {
		perror("pipe");
		return 1;
	}
	switch (fork()) {
	case -1:
		perror("fork");
		return 1;
	case 0:
		/* Otherwise it would wait for ever if the other one is killed. */
		close(there[1]);
		close(back[0]);
		for (long done = 0; done < count; done++)
			pass_on(there[0], back[1]);
		_exit(0);
	}
	clock_gettime(CLOCK_MONOTONIC, &begin);
	if (write(there[1], "", 1) != 1)
		return 1;
	for (long done = 1; done < count; done++)
		pass_on(back[0], there[1]);
	if (read(back[0], &status, 1) != 1)
		return 1;
	clock_gettime(CLOCK_MONOTONIC, &end);
	if (wait(&status) < 0 || status != 0)
		return 1;
	printf("%.6f\n", (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) / 1e9);
	return 0;
}
