/* SPDX-License-Identifier: MIT */
/*
 * virtio-msg-xen.h
 *
 * virtio-msg over Xen grants and event channels, bus version 1: what both sides of a bus instance
 * share. The text that explains it is xen-bus-binding.md; "section N" below is a section of it.
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
 * associated documentation files (the "Software"), to deal in the Software without restriction,
 * including without limitation the rights to use, copy, modify, merge, publish, distribute,
 * sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
 * furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all copies or
 * substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
 * NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
 * NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
 * DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
 * OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 *
 * Copyright (c) 2026 The virtio-msg over Xen authors
 */

#ifndef VIRTIO_MSG_XEN_H
#define VIRTIO_MSG_XEN_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdint.h>
#endif

/*
 * All fields in shared memory and in messages are little-endian. The names "to-device" and
 * "to-driver" are the two directions of the ring: the frontend produces to-device, the backend
 * produces to-driver.
 *
 * The shortest way to a frontend
 * ==============================
 *   1. Write 1 to the own `state`. Wait until the backend's is 2.
 *   2. Read the backend's `session` and its offer. Choose a page order and a message size within it,
 *      so that XEN_VMSG_SLOTS(order, size) is not 0.
 *   3. Grant 2^order zeroed pages for reading and writing; fill in struct xen_vmsg_ring's first line.
 *      Allocate an unbound event channel for the backend.
 *   4. Write the keys, `session` among them; write 3 to `state` last.
 *   5. When the backend's state is 4, with the same session, write 4: messages flow.
 *   6. Share memory with XEN_VMSG_AREA_SHARE, find devices with virtio-msg's GET_DEVICES.
 * Whatever else is read (section 3 has every pair of states) ends the session: fail what is
 * outstanding, write 5, then 6; revoke the grants only after the backend's state was seen to be
 * 1, 2 or 6, or its directory gone; begin again.
 */

/* A page of a ring, an area or a directory: 4,096 bytes, whatever the page size of the kernel. */
#define XEN_VMSG_PAGE_SIZE              4096

/*
 * XenStore (section 2)
 * ====================
 * Numbers are decimal without sign or leading zeros; transport-features is 0x and up to 8
 * hexadecimal digits. An absent feature is 0. Unknown keys are ignored.
 */
#define XEN_VMSG_BUS_VERSION            1
#define XEN_VMSG_REVISION               1

/* Offered by the backend, in its own directory. */
#define XEN_VMSG_KEY_BUS_VERSION        "bus-version"
#define XEN_VMSG_KEY_SESSION            "session"
#define XEN_VMSG_KEY_REVISION           "revision"
#define XEN_VMSG_KEY_FEATURES           "transport-features"
#define XEN_VMSG_KEY_MAX_MESSAGE_SIZE   "max-message-size"
#define XEN_VMSG_KEY_MAX_RING_ORDER     "max-ring-page-order"
#define XEN_VMSG_KEY_MAX_AREAS          "max-areas"
#define XEN_VMSG_KEY_MAX_AREA_PAGES     "max-area-pages"
#define XEN_VMSG_KEY_GRANT_ADDRESSES    "feature-grant-addresses"

/* Chosen by the frontend, in its own: bus-version, session, revision, transport-features and
 * feature-grant-addresses as above, and these. */
#define XEN_VMSG_KEY_MESSAGE_SIZE       "message-size"
#define XEN_VMSG_KEY_RING_ORDER         "ring-page-order"
#define XEN_VMSG_KEY_RING_REF           "ring-ref%u" /* for each page of the ring, from 0 */
#define XEN_VMSG_KEY_EVENT_CHANNEL      "event-channel"

/* What a backend offers if its administrator says nothing. */
#define XEN_VMSG_DEFAULT_MESSAGE_SIZE   264
#define XEN_VMSG_DEFAULT_MAX_AREAS      64
#define XEN_VMSG_DEFAULT_MAX_AREA_PAGES 4096

/*
 * Connection states (section 3)
 * =============================
 * The numbers of enum xenbus_state. Backend states 2 and 6 mean: nothing of the frontend's is held.
 */
#define XEN_VMSG_STATE_INITIALISING     1
#define XEN_VMSG_STATE_INIT_WAIT        2
#define XEN_VMSG_STATE_INITIALISED      3
#define XEN_VMSG_STATE_CONNECTED        4
#define XEN_VMSG_STATE_CLOSING          5
#define XEN_VMSG_STATE_CLOSED           6

/*
 * The ring (section 4)
 * ====================
 * 2^order pages: struct xen_vmsg_ring, then the to-device slots, then the to-driver slots. A slot is
 * one virtio-msg message; message number i lies in slot i & (slots - 1). Indexes count messages
 * modulo 2^32.
 */
#define XEN_VMSG_MAX_RING_ORDER         4
#define XEN_VMSG_MAX_RING_PAGES         16
#define XEN_VMSG_MIN_MESSAGE_SIZE       52
#define XEN_VMSG_MAX_MESSAGE_SIZE       8128
#define XEN_VMSG_MIN_SLOTS              4

#define XEN_VMSG_RING_MAGIC             0x424d5658 /* "XVMB" */
#define XEN_VMSG_RING_LAYOUT            1

/* Byte offsets. Each group is one 64-byte line with one writer. */
#define XEN_VMSG_OFF_MAGIC              0   /* the frontend, before state 3 */
#define XEN_VMSG_OFF_LAYOUT             4
#define XEN_VMSG_OFF_STRIDE             8
#define XEN_VMSG_OFF_SLOTS              12
#define XEN_VMSG_OFF_SESSION            16
#define XEN_VMSG_OFF_TO_DEVICE_PROD     64  /* the frontend */
#define XEN_VMSG_OFF_TO_DEVICE_SPACE_AT 68
#define XEN_VMSG_OFF_TO_DEVICE_CONS     128 /* the backend */
#define XEN_VMSG_OFF_TO_DEVICE_WAKE_AT  132
#define XEN_VMSG_OFF_TO_DRIVER_PROD     192 /* the backend */
#define XEN_VMSG_OFF_TO_DRIVER_SPACE_AT 196
#define XEN_VMSG_OFF_TO_DRIVER_CONS     256 /* the frontend */
#define XEN_VMSG_OFF_TO_DRIVER_WAKE_AT  260
#define XEN_VMSG_OFF_SLOT_AREA          320

struct xen_vmsg_ring {
    uint32_t magic;
    uint32_t layout;
    uint32_t stride;
    uint32_t slots;
    uint32_t session;
    uint32_t pad0[11];

    uint32_t to_device_prod;
    uint32_t to_device_space_at;
    uint32_t pad1[14];

    uint32_t to_device_cons;
    uint32_t to_device_wake_at;
    uint32_t pad2[14];

    uint32_t to_driver_prod;
    uint32_t to_driver_space_at;
    uint32_t pad3[14];

    uint32_t to_driver_cons;
    uint32_t to_driver_wake_at;
    uint32_t pad4[14];
};

/* Bytes from one slot to the next. */
#define XEN_VMSG_STRIDE(message_size)   (((uint32_t)(message_size) + 63u) & ~63u)

/* How many slots of that size fit per direction. */
#define XEN_VMSG_FIT(order, message_size)                                                          \
    ((((uint32_t)XEN_VMSG_PAGE_SIZE << (order)) - XEN_VMSG_OFF_SLOT_AREA) /                        \
     (2u * XEN_VMSG_STRIDE(message_size)))

/* Slots per direction: the largest power of two that fits; 0: the pair makes no ring. For an order
 * and a message size within the bounds above. */
#define XEN_VMSG_SLOTS(order, message_size)                                                        \
    (XEN_VMSG_FIT(order, message_size) >= 256u ? 256u                                              \
     : XEN_VMSG_FIT(order, message_size) >= 128u ? 128u                                            \
     : XEN_VMSG_FIT(order, message_size) >= 64u ? 64u                                              \
     : XEN_VMSG_FIT(order, message_size) >= 32u ? 32u                                              \
     : XEN_VMSG_FIT(order, message_size) >= 16u ? 16u                                              \
     : XEN_VMSG_FIT(order, message_size) >= 8u ? 8u                                                \
     : XEN_VMSG_FIT(order, message_size) >= 4u ? 4u : 0u)

/* Byte offset of the slot of to-device and of to-driver message number index. */
#define XEN_VMSG_TO_DEVICE_SLOT(index, stride, slots)                                              \
    (XEN_VMSG_OFF_SLOT_AREA + ((uint32_t)(index) & ((slots) - 1u)) * (stride))
#define XEN_VMSG_TO_DRIVER_SLOT(index, stride, slots)                                              \
    (XEN_VMSG_OFF_SLOT_AREA + ((slots) + ((uint32_t)(index) & ((slots) - 1u))) * (stride))

/*
 * Whether an index that moved from old to new has passed the point `at` at which the peer waits.
 *
 *   send:     write slots; store-release prod = new; full fence; if NEED(new, old, wake_at), notify
 *   receive:  copy slots out; store-release cons = new; full fence; if NEED(new, old, space_at), notify
 *   sleep:    receive's last step; wake_at = cons; full fence; sleep only if prod still equals cons
 *   ring full: send's last step; space_at = the cons that was seen; full fence; wait only if cons is
 *             still the same
 *
 * old is the own index at the previous such check of the same word, 0 in a fresh ring. prod and cons
 * of the peer are read with acquire ordering and refused when impossible; own indexes are never read
 * back. A side that does both, sleep and wait for room, makes both preparations, then one fence,
 * then both re-checks. An event is acknowledged before the ring is looked at. A Linux frontend's
 * full fence is virt_mb().
 */
#define XEN_VMSG_NEED(new_, old, at)                                                               \
    ((uint32_t)((uint32_t)(new_) - (uint32_t)(at) - 1u) < (uint32_t)((uint32_t)(new_) - (uint32_t)(old)))

/*
 * Bus addresses (section 5)
 * =========================
 * What stands in SET_VQUEUE and in every descriptor. Grant addresses are possible only if both sides
 * have feature-grant-addresses = 1. A range at a grant address goes on in the next reference.
 */
#define XEN_VMSG_AREA_ID_MIN            1
#define XEN_VMSG_AREA_ID_MAX            32767
#define XEN_VMSG_AREA_SHIFT             48
#define XEN_VMSG_GRANT_SHIFT            12
#define XEN_VMSG_GRANT_FORM             0x8000000000000000

#define XEN_VMSG_AREA_ADDR(area_id, offset)                                                        \
    (((uint64_t)(area_id) << XEN_VMSG_AREA_SHIFT) | (uint64_t)(offset))
#define XEN_VMSG_GRANT_ADDR(gref, offset)                                                          \
    ((uint64_t)XEN_VMSG_GRANT_FORM | ((uint64_t)(gref) << XEN_VMSG_GRANT_SHIFT) | (uint64_t)(offset))

/*
 * Private bus messages (section 6)
 * ================================
 * virtio-msg's bus type (0x02 request or event, 0x03 response), dev_num 0. The structures are the
 * payloads, behind the 8 bytes of virtio-msg's header, and are exactly as long as the payloads.
 */
#define XEN_VMSG_AREA_SHARE             0x81
#define XEN_VMSG_AREA_UNSHARE           0x82
#define XEN_VMSG_REMOVE_REQUEST         0xc1 /* event */

/* Reserved; discarded without an answer today. */
#define XEN_VMSG_RESERVED_HANDSHAKE     0x80
#define XEN_VMSG_RESERVED_RESET         0x83
#define XEN_VMSG_RESERVED_GRANT_RELEASE 0x88
#define XEN_VMSG_RESERVED_QUEUE_CHANNEL 0x89
#define XEN_VMSG_RESERVED_AREA_RELEASED 0xc0

/* AREA_SHARE's flags. */
#define XEN_VMSG_SHARE_DEVICE_WRITE     1
#define XEN_VMSG_SHARE_CONSECUTIVE      2 /* gref names the first data page; else a directory page */

/* The results of AREA_SHARE and AREA_UNSHARE. */
#define XEN_VMSG_RESULT_DONE            0
#define XEN_VMSG_RESULT_REFUSED         1
#define XEN_VMSG_RESULT_BUSY            2
#define XEN_VMSG_RESULT_NO_ROOM         3

struct xen_vmsg_area_share {
    uint16_t area_id;
    uint16_t flags;
    uint32_t page_count; /* data pages */
    uint32_t gref;
};

struct xen_vmsg_area_unshare {
    uint16_t area_id;
};

/* The answer to either. */
struct xen_vmsg_area_reply {
    uint16_t area_id;
    uint16_t result;
};

struct xen_vmsg_remove_request {
    uint16_t dev_num;
};

/* A directory page: granted for reading, needed until the answer. */
#define XEN_VMSG_DIRECTORY_REFS         1023

struct xen_vmsg_directory {
    uint32_t next; /* the next directory page; 0 in the last */
    uint32_t gref[XEN_VMSG_DIRECTORY_REFS];
};

#endif /* VIRTIO_MSG_XEN_H */
