/* SPDX-License-Identifier: GPL-2.0 */
/* The tables of a NIC that is none (devices.c). put, take, forget and stats want tables_lock held. */
#ifndef FEIGNED_TABLES_H
#define FEIGNED_TABLES_H

#include <linux/list.h>
#include <linux/mutex.h>
#include <net/netfilter/nf_flow_table.h>
#include <net/pkt_cls.h>

#define TOLD 400		/* bytes of a description */
#define MOST_TABLES 4		/* flow tables that one rule can hand connections over by */

struct table {
	const char *name;
	struct list_head entries;
	int count;
	int *room;
	unsigned long added, removed, asked;
};

struct entry {
	struct list_head list;
	unsigned long cookie;
	char told[TOLD];
	u64 packets, bytes;			/* seen by "hardware" */
	u64 packets_said, bytes_said;		/* and already told to the kernel */
	u64 used;				/* jiffies */
	struct nf_flowtable *flow_tables[MOST_TABLES];
	int n_flow_tables;
	const void *source;			/* of a connection: the flow table it came by */
};

extern struct table rules, conns;
extern unsigned long templates_made, templates_gone;
extern struct mutex tables_lock;

/* A rule or a connection is added; made: the new entry, or unchanged. A negative errno, with a sentence, if it is not. */
int put(struct table *t, const char *device, struct flow_cls_offload *f, struct entry **made);
/* The entry of that cookie, no longer in the table; its memory is the caller's. NULL if there is none. */
struct entry *take(struct table *t, unsigned long cookie);
/* All connections of a flow table that no rule names any more go. */
void forget(const void *source);
/* What hardware has counted since the last question. */
int stats(struct table *t, struct flow_cls_offload *f);

/* The files in debugfs. */
void tables_show(void);
void tables_hide(void);

#endif
