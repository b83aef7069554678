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
 * With "head" (4 or 8), rings can be mapped, and each sub-buffer begins with so many bytes in which
 * the module states its padding; beside each ring are NAMECPU.produced and NAMECPU.consumed (a
 * size_t; what is written to the latter is added), and subbuf_size and n_subbufs say how large they are.
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

static unsigned int head;
module_param(head, uint, 0444);
MODULE_PARM_DESC(head, "bytes of a sub-buffer that state its padding; 0: none, and no mapping");

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
	if (head && before) {
		/* A reader that trusts the head too early would read that of the lap before. */
		if (hold_us)
			udelay(hold_us);
		if (head == sizeof(u64))
			*(u64 *)before = before_padding;
		else
			*(u32 *)before = before_padding;
	}
	if (!overwrite && relay_buf_full(buf))
		return 0;
	if (head)
		subbuf_start_reserve(buf, head);
	return 1;
}

static ssize_t produced_read(struct file *file, char __user *user, size_t length, loff_t *at)
{
	struct rchan_buf *buf = file_inode(file)->i_private;

	return simple_read_from_buffer(user, length, at, &buf->subbufs_produced,
				       sizeof(buf->subbufs_produced));
}

static ssize_t consumed_read(struct file *file, char __user *user, size_t length, loff_t *at)
{
	struct rchan_buf *buf = file_inode(file)->i_private;

	return simple_read_from_buffer(user, length, at, &buf->subbufs_consumed,
				       sizeof(buf->subbufs_consumed));
}

static ssize_t consumed_write(struct file *file, const char __user *user, size_t length, loff_t *at)
{
	struct rchan_buf *buf = file_inode(file)->i_private;
	size_t count;

	if (length != sizeof(count) || copy_from_user(&count, user, length))
		return -EINVAL;
	relay_subbufs_consumed(buf->chan, buf->cpu, count);
	return length;
}

static const struct file_operations produced_operations = {
	.owner = THIS_MODULE,
	.read = produced_read,
};

static const struct file_operations consumed_operations = {
	.owner = THIS_MODULE,
	.read = consumed_read,
	.write = consumed_write,
};

static struct dentry *create_buf_file(const char *name, struct dentry *parent, umode_t mode,
				      struct rchan_buf *buf, int *is_global)
{
	char control[64];

	if (!head)
		return debugfs_create_file(name, mode, parent, buf, &relay_file_operations);
	snprintf(control, sizeof(control), "%s.produced", name);
	debugfs_create_file(control, 0400, parent, buf, &produced_operations);
	snprintf(control, sizeof(control), "%s.consumed", name);
	debugfs_create_file(control, 0600, parent, buf, &consumed_operations);
	/* debugfs_create_file() would hide the file's mmap. */
	return debugfs_create_file_unsafe(name, mode, parent, buf, &relay_file_operations);
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

/* Of one task for each channel and CPU, bound to that: nobody else counts or fills in there. */
static void make_record(const struct order *order)
{
	unsigned int cpu = raw_smp_processor_id();
	struct count *count = &counts[order->channel][cpu];
	unsigned int payload = order->least + count->made * 37 % (order->most - order->least + 1);
	unsigned int size = sizeof(struct record) + payload;
	struct record *record;
	unsigned long flags;

	local_irq_save(flags);
	record = relay_reserve(channels[order->channel], size);
	if (record && hold_us) {
		local_irq_restore(flags);
		usleep_range(hold_us, hold_us + 10);
		local_irq_save(flags);
	}
	if (record) {
		record->behind = cpu_to_le32(size - 4);
		record->sequence = cpu_to_le32(count->made);
		record->ns = cpu_to_le64(ktime_get_ns());
		record->cpu = cpu_to_le16(cpu);
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
	if (head) {
		debugfs_create_u32("subbuf_size", 0444, directory, &subbuf_size);
		debugfs_create_u32("n_subbufs", 0444, directory, &n_subbufs);
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
