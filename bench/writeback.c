/*
 * Keep the disk writing back: write round and round in a file of bounded size, hand each stretch
 * to the disk at once, and fsync (which commits the journal) at the end of each round.
 * Runs until it is killed; the file has no name after it was opened, so it leaves nothing.
 *
 *   writeback FILE MIB
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { WRITE_BYTES = 1 << 20, STRETCH_WRITES = 16 };

static char block[WRITE_BYTES];

int main(int argc, char **argv)
{
	int file, writes;

	if (argc != 3) {
		fprintf(stderr, "usage: writeback FILE MIB\n");
		return 2;
	}
	file = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (file < 0 || unlink(argv[1]) < 0) {
		perror(argv[1]);
		return 1;
	}
	writes = atoi(argv[2]);
	for (unsigned long round = 1;; round++) {
		for (int i = 0; i < writes; i++) {
			off_t at = (off_t)i * WRITE_BYTES;

			*(unsigned long *)block = round + i;
			if (pwrite(file, block, WRITE_BYTES, at) != WRITE_BYTES) {
				perror("write");
				return 1;
			}
			if (i % STRETCH_WRITES == STRETCH_WRITES - 1)
				sync_file_range(file, at + WRITE_BYTES - STRETCH_WRITES * WRITE_BYTES,
						STRETCH_WRITES * WRITE_BYTES,
						SYNC_FILE_RANGE_WRITE);
		}
		fsync(file);
	}
}
