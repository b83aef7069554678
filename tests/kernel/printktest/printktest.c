// SPDX-License-Identifier: GPL-2.0
/* Writes into the trace with trace_printk() while it is loaded. */
#include <linux/kernel.h>
#include <linux/module.h>

static int __init printktest_init(void)
{
	int number;

	for (number = 1; number <= 3; number++)
		trace_printk("number %d of %s\n", number, "printktest");
	trace_printk("a constant text\n");
	return 0;
}

static void __exit printktest_exit(void)
{
}

module_init(printktest_init);
module_exit(printktest_exit);
MODULE_DESCRIPTION("Writes into the trace with trace_printk()");
MODULE_LICENSE("GPL");
