"""What passed at a device in router mode, on its way through a loop: looked up, changed where it lies, cut up, held, told of. Part of loop.pyx.

Not here: where a frame is routed to (router), frames that no router is asked about (loop.pyx).
"""


cdef int route(Loop self, size_t i, const Output *out) noexcept nogil:
    """The exit of what no iface takes as it is: ONWARD + an iface's, or NOBODY. No chunk has been written to yet in this round."""
    cdef const uint8_t *data
    cdef const uint8_t *before
    cdef uint32_t have
    if self.exit[i] != ROUTED or self.again:
        self.counts.nobody += 1
        return NOBODY
    data = (self.pipeline.walker.all.memory if out.flags & OUTPUT_CHANGED else self.umem.base) + out.offset
    self.router.look(data, out.caplen, self.frame[out.frame].iface, &self.step[i])
    if likely(self.step[i].way <= WAY_CUT):
        self.n_routed += 1
        return ONWARD + self.sends[self.step[i].out]
    if self.step[i].way == WAY_NO_NEIGHBOUR:
        hold(self, &self.step[i], out, data)
    else:
        before = as_it_came(self, out, data, &have)
        tell(self, &self.step[i], before, have, self.frame[out.frame].iface, self.frame[out.frame].ts)
    return NOBODY


cdef const uint8_t *as_it_came(Loop self, const Output *out, const uint8_t *data, uint32_t *have) noexcept nogil:
    """What an error quotes, before any chunk is written to. Of a datagram that rules have put together, whose last fragment came as none that errors
    may be about, that is a piece as it is now."""
    cdef const Frame *came = &self.frame[out.frame]
    cdef const uint8_t *before = self.umem.base + came.offset
    have[0] = came.caplen
    if unlikely(later_fragment(before, have[0])) and same_ends(before, data, out.caplen):
        have[0] = out.caplen
        return data
    return before


cdef void tell(Loop self, const Step *step, const uint8_t *before, uint32_t have, uint32_t at, int64_t ts) noexcept nogil:
    """Tell a frame's sender that it goes nowhere.   before, have: what is quoted; at: ordinal of the device that it came to."""
    cdef uint32_t size
    cdef uint64_t offset
    cdef Step back
    if pool_take(self.pool, &offset, 1, HELD) == 0:
        self.counts.no_chunk += 1
        return
    size = self.router.tell(step, before, have, at, ts, self.umem.base + offset, &back)
    if size:
        go_on(self, offset, size, back.out, ts)
    else:
        pool_give(self.pool, offset, HELD)


cdef void hold(Loop self, const Step *step, const Output *out, const uint8_t *data) noexcept nogil:
    """A frame waits for its neighbour: in its own chunk, or, if its rules have changed it, in a new one beside that."""
    cdef const Frame *came = &self.frame[out.frame]
    cdef const uint8_t *before
    cdef Waiting one
    cdef Address a
    cdef uint32_t link
    if not self.router.next_hop(data + ETH, step.six, &a, &link):
        return
    before = as_it_came(self, out, data, &one.have)
    one.size, one.at = out.caplen, came.iface
    one.offset = self.fresh(data, out.caplen) if out.flags & OUTPUT_CHANGED else claim(self, out.frame, out.offset, out.caplen)
    if one.offset == NOWHERE:
        return
    one.came = one.offset
    if before != data and out.flags & OUTPUT_CHANGED:
        one.came = claim(self, out.frame, came.offset, one.have)
    if one.came == NOWHERE:
        pool_give(self.pool, one.offset, HELD)
        return
    self.router.unresolved.put(&one, a, link, wall_ns())


cdef uint64_t claim(Loop self, uint32_t frame, uint64_t offset, uint32_t size) noexcept nogil:
    """A frame's own chunk, or another one with the same in it."""
    if self.claimed[frame]:
        return self.fresh(self.umem.base + offset, size)
    self.claimed[frame] = True
    return offset


cdef void resolve(Loop self, int64_t now) noexcept nogil:
    """Frames whose neighbours are known by now, or will not be: on, or their senders are told."""
    cdef Waiting one
    cdef Step step
    while self.router.unresolved.take(self.router.near, now, &one):
        self.router.look(self.umem.base + one.offset, one.size, one.at, &step)
        if step.way == WAY_NO_NEIGHBOUR:
            self.router.give_up(&step)
        if step.way > WAY_CUT:
            tell(self, &step, self.umem.base + one.came, one.have, one.at, now)
            self.router.unresolved.give(&one)
            continue
        if one.came != one.offset:
            pool_give(self.pool, one.came, HELD)
        move(self, one.offset, &step, now)
        if self.n_onward >= ROUND:
            send_onward(self)
    if self.n_onward:
        send_onward(self)


cdef void move_all(Loop self, size_t n) noexcept nogil:
    """What is routed is changed where it lies now, and stands in `onward` from then on."""
    cdef size_t i
    self.n_routed = 0
    for i in range(n):
        if self.exit[i] < ONWARD or self.place[i] == NOWHERE:
            continue
        move(self, self.place[i], &self.step[i], self.frame[self.pipeline.walker.all.row[i].frame].ts)
        self.place[i] = NOWHERE


cdef inline void move(Loop self, uint64_t offset, const Step *step, int64_t ts) noexcept nogil:
    router_move(self.umem.base + offset, step)
    if likely(step.way != WAY_CUT):
        go_on(self, offset, ETH + step.length, step.out, ts)
    else:
        cut_up(self, self.umem.base + offset, step, ts)
        pool_give(self.pool, offset, HELD)


cdef void cut_up(Loop self, const uint8_t *frame, const Step *step, int64_t ts) noexcept nogil:
    cdef Slices slices
    cdef uint64_t offset
    cdef uint32_t size
    if not slices_begin(&slices, frame + ETH, step.mtu):
        self.counts.too_long += 1
        return
    while slices.done < slices.total - slices.head:
        if pool_take(self.pool, &offset, 1, HELD) == 0:
            self.counts.no_chunk += 1
            return
        size = slices_next(&slices, self.umem.base + offset + ETH)
        memcpy(self.umem.base + offset, frame, ETH)
        go_on(self, offset, ETH + size, step.out, ts)


cdef void go_on(Loop self, uint64_t offset, uint32_t size, uint32_t ordinal, int64_t ts) noexcept nogil:
    """A frame that the router sends, in a chunk that is held."""
    cdef Frame *on
    if unlikely(self.n_onward == MOST_ONWARD):
        self.counts.too_many += 1
        pool_give(self.pool, offset, HELD)
        return
    on = &self.onward[self.n_onward]
    on.offset, on.caplen, on.len, on.ts, on.link, on.iface = offset, size, size, ts, LINKTYPE_ETHERNET, ordinal
    self.n_onward += 1


cdef void send_onward(Loop self) noexcept nogil:
    """In order for each device: to it, or through the rules at its egress first."""
    cdef int i, n = 0, to = NOBODY, out, all = self.n_onward
    self.n_onward = 0
    for i in range(all):
        if self.ruled[self.onward[i].iface]:
            continue
        out = self.sends[self.onward[i].iface]
        if out != to or n == MOST_OUT:
            self.flush(to, n)
            to, n = out, 0
        self.ready[n].offset, self.ready[n].len, self.ready[n].flags = self.onward[i].offset, self.onward[i].caplen, 0
        n += 1
    self.flush(to, n)
    n = 0
    self.again = True
    for i in range(all):
        if self.ruled[self.onward[i].iface]:
            self.frame[n] = self.onward[i]
            self.frame[n].iface += self.n_devices
            n += 1
        if n == ROUND or (n and i == all - 1):
            self.through(n)
            n = 0
    self.again = False
