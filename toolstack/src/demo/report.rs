//! What the demo prints at its end.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;
use xen_hal::hosted::Counters;

use super::guest::{GuestFigures, SINGLE_READS};

/// Everything the demo found out.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Every byte was compared, both ways, by the guest and by the host.
    pub(super) verified: bool,
    /// Bytes of the disk.
    pub(super) bytes: u64,
    /// What GET_ID answered.
    pub(super) serial: String,
    /// Messages of the bring-up, both directions.
    pub(super) bring_up_messages: u64,
    /// Of the guest.
    pub(super) guest: GuestFigures,
    /// Of the single reads.
    pub(super) single_reads: PerRead,
    /// Pages that the backend mapped, once.
    pub(super) mapped_pages: u64,
}

/// Hypercalls of single 4 KiB reads with one in flight, for each read.
#[derive(Debug, Serialize)]
pub(super) struct PerRead {
    /// Reads that were counted.
    pub(super) reads: u64,
    /// Event-channel sends of the guest.
    pub(super) guest_sends: f64,
    /// Event-channel sends of the backend.
    pub(super) backend_sends: f64,
    /// Grant operations of both: pages mapped, unmapped and copied.
    pub(super) grant_operations: f64,
    /// Every other hypercall of both.
    pub(super) other_hypercalls: f64,
}

impl Report {
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(NOTHING);
        let per_read = &self.single_reads;
        let guest = &self.guest;
        let rows = [
            ("device", format!("virtio-blk, serial {:?}", self.serial)),
            ("disk", format!("{} bytes", self.bytes)),
            (
                "read, 8 in flight",
                format!("{:.0} MiB/s", guest.read.mib_per_second()),
            ),
            (
                "write + flush, 8 in flight",
                format!("{:.0} MiB/s", guest.write.mib_per_second()),
            ),
            (
                "read back, 8 in flight",
                format!("{:.0} MiB/s", guest.read_back.mib_per_second()),
            ),
            (
                "4 KiB read, one in flight",
                format!(
                    "{:.1} us median, {:.1} us p99",
                    guest.latency_p50_us, guest.latency_p99_us
                ),
            ),
            (
                "messages of the bring-up",
                self.bring_up_messages.to_string(),
            ),
            (
                "pages mapped by the backend",
                format!("{}, once", self.mapped_pages),
            ),
            (
                "event-channel sends per read",
                format!(
                    "{:.3} guest, {:.3} backend",
                    per_read.guest_sends, per_read.backend_sends
                ),
            ),
            (
                "grant operations per read",
                format!("{:.3}", per_read.grant_operations),
            ),
            (
                "other hypercalls per read",
                format!("{:.3}", per_read.other_hypercalls),
            ),
            (
                "verified",
                if self.verified {
                    "every byte, both ways"
                } else {
                    "NO"
                }
                .to_owned(),
            ),
        ];
        for (name, value) in rows {
            table.add_row([name.to_owned(), value]);
        }
        if let Some(column) = table.column_mut(0) {
            column.set_cell_alignment(CellAlignment::Left);
        }
        table
    }
}

impl PerRead {
    /// From what both counted during the single reads.
    pub(super) fn new(guest: &Counters, backend: &Counters) -> Self {
        let reads = SINGLE_READS as u64;
        let both = |pick: fn(&Counters) -> u64| pick(guest) + pick(backend);
        let grants = both(|c| c.grant_map_pages + c.grant_unmap_pages + c.grant_copy_segments);
        let others = both(|c| c.evtchn_bind_interdomain + c.evtchn_alloc_unbound + c.evtchn_close);
        #[expect(clippy::cast_precision_loss, reason = "for display")]
        let per_read = |count: u64| count as f64 / reads as f64;
        Self {
            reads,
            guest_sends: per_read(guest.evtchn_send),
            backend_sends: per_read(backend.evtchn_send),
            grant_operations: per_read(grants),
            other_hypercalls: per_read(others),
        }
    }
}
