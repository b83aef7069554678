// SPDX-License-Identifier: GPL-2.0
/*
 * A relay channel that does on demand what a reader has to cope with, and that says what it wrote.
 *
 * debugfs relaytest/: the channels first0, first1, ... and, once opened, late0, late1, ...;
 * "control" takes one command a write; "status" has a line for each channel and CPU:
 *	NAME CPU made MADE stored STORED stored_bytes BYTES refused REFUSED refused_bytes BYTES
 *
 * Commands (CHANNEL is 0 for "first", 1 for "late"):
 *	write CHANNEL CPU RECORDS LEAST MOST PAUSE_US	payloads of LEAST to MOST bytes
 *	flush CHANNEL
 *	open						makes "late"
 *
 * A record is 24 bytes and its payload, all bytes of which are the low byte of its sequence number:
 *	u32 length of what follows, u32 sequence, u64 ns (CLOCK_MONOTONIC), u16 cpu, u16 payload bytes,
 *	u32 ~sequence
 * The sequence number of a CPU counts every record that was made, stored or refused.
 */
#include <linux/cpu.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/relay.h>
#include <linux/seq_file.h>
#include <linux/smp.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

static unsigned int subbuf_size = 4096;
module_param(subbuf_size, uint, 0444);
static unsigned int n_subbufs = 8;
module_param(n_subbufs, uint, 0444);
static bool overwrite;
module_param(overwrite, bool, 0444);
static unsigned int hold_us;
module_param(hold_us, uint, 0444);
MODULE_PARM_DESC(hold_us, "leave each record reserved and unwritten for so long");
static unsigned int flush_ms;
module_param(flush_ms, uint, 0444);
MODULE_PARM_DESC(flush_ms, "close the open sub-buffers this often; 0: never");

struct record {
	__le32 behind;
	__le32 sequence;
	__le64 ns;
	__le16 cpu;
	__le16 payload;
	__le32 check;
} __packed;

struct count {
	u32 made;
	u32 stored;
	u32 refused;
	u64 stored_bytes;
	u64 refused_bytes;
};

static const char *const names[] = { "first", "late" };
static struct rchan *channels[ARRAY_SIZE(names)];
static struct count counts[ARRAY_SIZE(names)][NR_CPUS];
static struct dentry *directory;
static struct delayed_work flusher;

static int subbuf_start(struct rchan_buf *buf, void *subbuf, void *before, size_t before_padding)
{
	return overwrite || !relay_buf_full(buf);
}

static struct dentry *create_buf_file(const char *name, struct dentry *parent, umode_t mode,
				      struct rchan_buf *buf, int *is_global)
{
	return debugfs_create_file(name, mode, parent, buf, &relay_file_operations);
}

static int remove_buf_file(struct dentry *dentry)
{
	debugfs_remove(dentry);
	return 0;
}

static const struct rchan_callbacks callbacks = {
	.subbuf_start = subbuf_start,
	.create_buf_file = create_buf_file,
	.remove_buf_file = remove_buf_file,
};

struct order {
	unsigned int channel;
	unsigned int records;
	unsigned int least;
	unsigned int most;
	unsigned int pause_us;
};

static void make_record(const struct order *order)
{
	struct count *count;
	struct record *record;
	unsigned int payload, size;
	unsigned long flags;

	local_irq_save(flags);
	count = &counts[order->channel][smp_processor_id()];
	payload = order->least + count->made * 37 % (order->most - order->least + 1);
	size = sizeof(*record) + payload;
	record = relay_reserve(channels[order->channel], size);
	if (record) {
		if (hold_us)
			udelay(hold_us);
		record->behind = cpu_to_le32(size - 4);
		record->sequence = cpu_to_le32(count->made);
		record->ns = cpu_to_le64(ktime_get_ns());
		record->cpu = cpu_to_le16(smp_processor_id());
		record->payload = cpu_to_le16(payload);
		record->check = cpu_to_le32(~count->made);
		memset(record + 1, (u8)count->made, payload);
		count->stored++;
		count->stored_bytes += size;
	} else {
		count->refused++;
		count->refused_bytes += size;
	}
	count->made++;
	local_irq_restore(flags);
}

static long make_records(void *argument)
{
	const struct order *order = argument;
	unsigned int number;

	for (number = 0; number < order->records; number++) {
		make_record(order);
		if (order->pause_us)
			usleep_range(order->pause_us, order->pause_us + 10);
		else
			cond_resched();
	}
	return 0;
}

/* Not relay_flush(): that closes a sub-buffer while its CPU may be filling in a record. */
static void flush_cpu(void *buf)
{
	relay_switch_subbuf(buf, 0);
}

static void flush_channel(struct rchan *channel)
{
	unsigned int cpu;

	cpus_read_lock();
	for_each_possible_cpu(cpu) {
		struct rchan_buf *buf = *per_cpu_ptr(channel->buf, cpu);

		if (buf && cpu_online(cpu))
			smp_call_function_single(cpu, flush_cpu, buf, 1);
		else if (buf)
			flush_cpu(buf);
	}
	cpus_read_unlock();
}

static int open_channel(unsigned int number)
{
	if (channels[number])
		return -EBUSY;
	channels[number] = relay_open(names[number], directory, subbuf_size, n_subbufs, &callbacks,
				      NULL);
	return channels[number] ? 0 : -ENOMEM;
}

static ssize_t control_write(struct file *file, const char __user *user, size_t length, loff_t *at)
{
	char text[128] = "";
	struct order order;
	unsigned int cpu;
	int error = -EINVAL;

	if (length >= sizeof(text) || copy_from_user(text, user, length))
		return -EINVAL;
	if (sscanf(text, "write %u %u %u %u %u %u", &order.channel, &cpu, &order.records,
		   &order.least, &order.most, &order.pause_us) == 6) {
		if (order.channel < ARRAY_SIZE(names) && channels[order.channel] &&
		    cpu < nr_cpu_ids && order.least <= order.most)
			error = work_on_cpu(cpu, make_records, &order);
	} else if (sscanf(text, "flush %u", &order.channel) == 1) {
		if (order.channel < ARRAY_SIZE(names) && channels[order.channel]) {
			flush_channel(channels[order.channel]);
			error = 0;
		}
	} else if (!strncmp(text, "open", 4)) {
		error = open_channel(1);
	}
	return error ? error : length;
}

static const struct file_operations control_operations = {
	.owner = THIS_MODULE,
	.write = control_write,
};

static int status_show(struct seq_file *file, void *unused)
{
	unsigned int number;
	int cpu;

	for (number = 0; number < ARRAY_SIZE(names); number++) {
		if (!channels[number])
			continue;
		for_each_possible_cpu(cpu) {
			const struct count *count = &counts[number][cpu];

			seq_printf(file,
				   "%s %d made %u stored %u stored_bytes %llu refused %u refused_bytes %llu\n",
				   names[number], cpu, count->made, count->stored,
				   count->stored_bytes, count->refused, count->refused_bytes);
		}
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(status);

static void flush_all(struct work_struct *work)
{
	unsigned int number;

	for (number = 0; number < ARRAY_SIZE(names); number++)
		if (channels[number])
			flush_channel(channels[number]);
	schedule_delayed_work(&flusher, msecs_to_jiffies(flush_ms));
}

static int __init relaytest_init(void)
{
	int error;

	directory = debugfs_create_dir("relaytest", NULL);
	error = open_channel(0);
	if (error) {
		debugfs_remove_recursive(directory);
		return error;
	}
	debugfs_create_file("control", 0200, directory, NULL, &control_operations);
	debugfs_create_file("status", 0444, directory, NULL, &status_fops);
	INIT_DELAYED_WORK(&flusher, flush_all);
	if (flush_ms)
		schedule_delayed_work(&flusher, msecs_to_jiffies(flush_ms));
	return 0;
}

static void __exit relaytest_exit(void)
{
	unsigned int number;

	cancel_delayed_work_sync(&flusher);
	for (number = 0; number < ARRAY_SIZE(names); number++)
		if (channels[number])
			relay_close(channels[number]);
	debugfs_remove_recursive(directory);
}

module_init(relaytest_init);
module_exit(relaytest_exit);
MODULE_DESCRIPTION("relay channels for the tests of a reader");
MODULE_LICENSE("GPL");
