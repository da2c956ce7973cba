//! Indirect tables on the device side.

use guest_memory::TranslateError;
use virtqueue::{Chain, ChainRefusal, DescriptorAt, MAX_INDIRECT_ENTRIES, QueueFault};

use crate::rig::{
    BASE, BYTES, INDIRECT, NEXT, PLAIN, RawDescriptor, Rig, TABLES, WITH_INDIRECT, WRITE, segment,
};

/// A ring whose descriptor 0 names a table.
fn with_table(table: &[RawDescriptor]) -> Rig {
    let rig = Rig::new(4);
    rig.table(TABLES, table);
    let len = 16 * u32::try_from(table.len()).unwrap();
    rig.descriptors(0, &[(TABLES, len, INDIRECT, 0)]);
    rig
}

fn fault_of(rig: &Rig) -> QueueFault {
    rig.judge(WITH_INDIRECT).unwrap_err()
}

const IN_RING: DescriptorAt = DescriptorAt::Ring(0);

const fn in_table(entry: u16) -> DescriptorAt {
    DescriptorAt::Table { referrer: 0, entry }
}

#[test]
fn r08_table_of_one_works() {
    let rig = with_table(&[(BASE, 5, WRITE, 0xffff)]);
    let chain = rig.judge(WITH_INDIRECT).unwrap();
    assert_eq!(chain.head(), 0);
    assert_eq!(chain.writable(), [segment(BASE, 5)]);
}

#[test]
fn r08_table_of_the_limit_works_whatever_the_queue_size() {
    let table: Vec<_> = (0..MAX_INDIRECT_ENTRIES)
        .map(|entry| {
            let last = entry + 1 == MAX_INDIRECT_ENTRIES;
            (BASE, 3, if last { 0 } else { NEXT }, entry + 1)
        })
        .collect();
    let chain = with_table(&table).judge(WITH_INDIRECT).unwrap();
    assert_eq!(chain.readable().len(), usize::from(MAX_INDIRECT_ENTRIES));
    assert_eq!(chain.readable_len(), 3 * u64::from(MAX_INDIRECT_ENTRIES));
}

#[test]
fn table_above_the_limit_is_refused_and_the_ring_goes_on() {
    for entries in [u32::from(MAX_INDIRECT_ENTRIES) + 1, 65536, u32::MAX / 16] {
        let rig = Rig::new(4);
        rig.descriptors(
            0,
            &[
                (BASE, 16, NEXT, 1),
                (TABLES, 16 * entries, INDIRECT, 0),
                (BASE, 1, WRITE, 0),
            ],
        );
        let mut device = rig.device(WITH_INDIRECT);
        let mut chain = Chain::new();
        rig.offer(&[0, 2]);
        assert!(device.pop(&rig.space, &mut chain).unwrap());
        assert_eq!(
            chain.refusal(),
            Some(ChainRefusal::TooManyEntries {
                entries,
                limit: MAX_INDIRECT_ENTRIES
            })
        );
        assert_eq!(chain.head(), 0);
        assert!(chain.readable().is_empty(), "not the whole chain");
        device.push_used(0, 0).unwrap();
        assert!(device.pop(&rig.space, &mut chain).unwrap());
        assert_eq!((chain.head(), chain.refusal()), (2, None));
    }
}

#[test]
fn r08_write_on_the_referrer_is_ignored() {
    let rig = with_table(&[(BASE, 16, NEXT, 1), (BASE, 1, WRITE, 0)]);
    rig.descriptors(0, &[(TABLES, 32, INDIRECT | WRITE, 0)]);
    let chain = rig.judge(WITH_INDIRECT).unwrap();
    assert_eq!(chain.readable(), [segment(BASE, 16)]);
    assert_eq!(chain.writable(), [segment(BASE, 1)]);
}

#[test]
fn r08_direct_descriptors_may_come_before_the_table() {
    for direct in 1..4u16 {
        let rig = Rig::new(4);
        for index in 0..direct {
            rig.descriptors(index, &[(BASE + u64::from(index), 1, NEXT, index + 1)]);
        }
        rig.descriptors(direct, &[(TABLES, 48, INDIRECT, 0)]);
        // Entries need not be in order, nor all be used.
        rig.table(
            TABLES,
            &[
                (BASE + 100, 1, NEXT, 2),
                (BASE + 999, 1, 0, 0),
                (BASE + 200, 1, WRITE, 0),
            ],
        );
        let chain = rig.judge(WITH_INDIRECT).unwrap();
        let mut readable: Vec<_> = (0..u64::from(direct))
            .map(|index| segment(BASE + index, 1))
            .collect();
        readable.push(segment(BASE + 100, 1));
        assert_eq!(chain.readable(), readable);
        assert_eq!(chain.writable(), [segment(BASE + 200, 1)]);
    }
}

#[test]
fn r08_table_may_stand_at_any_address() {
    for odd in [1, 2, 7, 15] {
        let rig = Rig::new(4);
        rig.table(TABLES + odd, &[(BASE, 16, NEXT, 1), (BASE, 1, WRITE, 0)]);
        rig.descriptors(0, &[(TABLES + odd, 32, INDIRECT, 0)]);
        assert_eq!(rig.judge(WITH_INDIRECT).unwrap().readable_len(), 16);
    }
}

#[test]
fn r08_table_may_end_with_its_area() {
    let rig = Rig::new(4);
    let addr = BASE + BYTES - 16;
    rig.table(addr, &[(BASE, 1, WRITE, 0)]);
    rig.descriptors(0, &[(addr, 16, INDIRECT, 0)]);
    assert_eq!(rig.judge(WITH_INDIRECT).unwrap().writable_len(), 1);
}

#[test]
fn r09_table_without_the_feature_faults() {
    let rig = with_table(&[(BASE, 1, WRITE, 0)]);
    assert_eq!(
        rig.judge(PLAIN).unwrap_err(),
        QueueFault::IndirectNotNegotiated { at: IN_RING }
    );
}

#[test]
fn r09_length_that_is_no_table_faults() {
    for len in [0, 1, 8, 15, 17, 24, u32::MAX] {
        let rig = with_table(&[(BASE, 1, WRITE, 0), (BASE, 1, WRITE, 0)]);
        rig.descriptors(0, &[(TABLES, len, INDIRECT, 0)]);
        assert_eq!(
            fault_of(&rig),
            QueueFault::IndirectLength { at: IN_RING, len }
        );
    }
}

#[test]
fn r09_nested_table_faults() {
    let rig = with_table(&[(BASE, 1, NEXT, 1), (TABLES, 16, INDIRECT, 0)]);
    assert_eq!(
        fault_of(&rig),
        QueueFault::IndirectNested { at: in_table(1) }
    );
}

#[test]
fn r09_table_with_a_next_descriptor_faults() {
    let rig = with_table(&[(BASE, 1, WRITE, 0)]);
    rig.descriptors(0, &[(TABLES, 16, INDIRECT | NEXT, 1), (BASE, 1, WRITE, 0)]);
    assert_eq!(fault_of(&rig), QueueFault::IndirectWithNext { at: IN_RING });
}

#[test]
fn r09_link_outside_of_the_table_faults() {
    // 2 would be a descriptor of the ring, but the table has only 0 and 1.
    for next in [2, 3, 4, 0xffff] {
        let rig = with_table(&[(BASE, 1, NEXT, 1), (BASE, 1, NEXT, next)]);
        assert_eq!(
            fault_of(&rig),
            QueueFault::NextOutOfRange {
                at: in_table(1),
                next,
                entries: 2
            }
        );
        let rig = with_table(&[(BASE, 1, NEXT, next), (BASE, 1, 0, 0)]);
        assert_eq!(
            fault_of(&rig),
            QueueFault::NextOutOfRange {
                at: in_table(0),
                next,
                entries: 2
            }
        );
    }
}

#[test]
fn r09_loop_in_the_table_faults() {
    for length in [1u16, 2, 5] {
        let mut table = vec![(BASE, 1, 0, 0); 5];
        for index in 0..length {
            table[usize::from(index)] = (BASE, 1, NEXT, (index + 1) % length);
        }
        assert_eq!(
            fault_of(&with_table(&table)),
            QueueFault::Loop {
                head: 0,
                entries: 5
            }
        );
    }
}

#[test]
fn r07_readable_after_writable_in_the_table_faults() {
    let rig = with_table(&[(BASE, 1, NEXT | WRITE, 1), (BASE, 1, 0, 0)]);
    assert_eq!(
        fault_of(&rig),
        QueueFault::ReadableAfterWritable { at: in_table(1) }
    );
    let rig = Rig::new(4);
    rig.descriptors(0, &[(BASE, 1, WRITE | NEXT, 1), (TABLES, 16, INDIRECT, 0)]);
    rig.table(TABLES, &[(BASE, 1, 0, 0)]);
    assert_eq!(
        fault_of(&rig),
        QueueFault::ReadableAfterWritable {
            at: DescriptorAt::Table {
                referrer: 1,
                entry: 0
            }
        }
    );
}

#[test]
fn r09_table_outside_of_shared_memory_faults() {
    let end = BASE + BYTES;
    let unknown = |addr| TranslateError::Unknown { addr };
    for (addr, source) in [
        (0, unknown(0)),
        (end, unknown(end)),
        (u64::MAX - 3, unknown(u64::MAX - 3)),
        (
            end - 16,
            TranslateError::Beyond {
                addr: end - 16,
                len: 32,
            },
        ),
    ] {
        let rig = Rig::new(4);
        rig.descriptors(0, &[(addr, 32, INDIRECT, 0)]);
        assert_eq!(
            fault_of(&rig),
            QueueFault::IndirectTable {
                at: IN_RING,
                source
            }
        );
    }
}
