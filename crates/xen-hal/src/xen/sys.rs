//! Numbers and layouts of the ioctls (Linux `uapi/xen/{gntdev,gntalloc,evtchn,privcmd}.h`), and
//! the one function that calls them. No behaviour beyond that.
//!
//! All opcodes are `_IOC_NONE` with a size: raw numbers, because no helper that derives
//! read or write directions gives these.

use core::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use xen_types::{DomId, GrantRef};
use zerocopy::{FromZeros, Immutable, KnownLayout};

pub(super) const GNTDEV_MAP_GRANT_REF: u32 = 0x0018_4700;
pub(super) const GNTDEV_UNMAP_GRANT_REF: u32 = 0x0010_4701;
pub(super) const GNTDEV_GRANT_COPY: u32 = 0x0010_4708;
pub(super) const GNTALLOC_ALLOC_GREF: u32 = 0x0018_4705;
pub(super) const GNTALLOC_DEALLOC_GREF: u32 = 0x0010_4706;
pub(super) const EVTCHN_BIND_INTERDOMAIN: u32 = 0x0008_4501;
pub(super) const EVTCHN_BIND_UNBOUND_PORT: u32 = 0x0004_4502;
pub(super) const EVTCHN_UNBIND: u32 = 0x0004_4503;
pub(super) const EVTCHN_NOTIFY: u32 = 0x0004_4504;
pub(super) const PRIVCMD_MMAPBATCH_V2: u32 = 0x0020_5004;
pub(super) const PRIVCMD_DM_OP: u32 = 0x0010_5005;
pub(super) const PRIVCMD_MMAP_RESOURCE: u32 = 0x0020_5007;

/// `GNTALLOC_FLAG_WRITABLE`.
pub(super) const GNTALLOC_WRITABLE: u16 = 1;
/// `GNTCOPY_source_gref`.
pub(super) const COPY_FROM_GRANT: u16 = 1;
/// `GNTCOPY_dest_gref`.
pub(super) const COPY_TO_GRANT: u16 = 2;

/// No `GNTST_*` status: the kernel left the segment alone.
pub(super) const COPY_NOT_TRIED: i16 = i16::MIN;

/// `struct ioctl_gntdev_map_grant_ref`: variable length, the opcode carries the size for one reference.
#[derive(Debug, FromZeros, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct MapGrantRef {
    pub(super) count: u32,
    pub(super) pad: u32,
    pub(super) index: u64,
    pub(super) refs: [ForeignRef],
}

/// `struct ioctl_gntdev_grant_ref`.
#[derive(Debug, FromZeros, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct ForeignRef {
    pub(super) domid: u32,
    pub(super) gref: u32,
}

/// `struct ioctl_gntdev_unmap_grant_ref`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct UnmapGrantRef {
    pub(super) index: u64,
    pub(super) count: u32,
    pub(super) pad: u32,
}

/// `struct ioctl_gntdev_grant_copy`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct CopyCall {
    pub(super) count: u32,
    pub(super) segments: *mut CopySegment,
}

/// `struct gntdev_grant_copy_segment`. Each side is a union: an address of this process, or [`foreign`].
#[derive(Debug)]
#[repr(C)]
pub(super) struct CopySegment {
    pub(super) source: u64,
    pub(super) dest: u64,
    pub(super) len: u16,
    pub(super) flags: u16,
    pub(super) status: i16,
}

/// `struct ioctl_gntalloc_alloc_gref`: variable length, the opcode carries the size for one reference (padded).
#[derive(Debug, FromZeros, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct AllocGref {
    pub(super) domid: u16,
    pub(super) flags: u16,
    pub(super) count: u32,
    pub(super) index: u64,
    pub(super) gref_ids: [u32],
}

/// `struct ioctl_gntalloc_dealloc_gref`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct DeallocGref {
    pub(super) index: u64,
    pub(super) count: u32,
}

/// `struct ioctl_evtchn_bind_interdomain`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct BindInterdomain {
    pub(super) remote_domain: u32,
    pub(super) remote_port: u32,
}

/// `struct ioctl_evtchn_bind_unbound_port`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct BindUnbound {
    pub(super) remote_domain: u32,
}

/// `struct ioctl_evtchn_unbind` and `struct ioctl_evtchn_notify`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Port {
    pub(super) port: u32,
}

/// `struct privcmd_mmapbatch_v2`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct MmapBatch {
    pub(super) num: u32,
    pub(super) dom: u16,
    pub(super) addr: u64,
    pub(super) arr: *const u64,
    pub(super) err: *mut i32,
}

/// `struct privcmd_dm_op`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct DmOpCall {
    pub(super) dom: u16,
    pub(super) num: u16,
    pub(super) ubufs: *const DmOpBuffer,
}

/// `struct privcmd_dm_op_buf`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct DmOpBuffer {
    pub(super) uptr: *mut c_void,
    pub(super) size: usize,
}

/// `struct privcmd_mmap_resource`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct MmapResource {
    pub(super) dom: u16,
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) idx: u32,
    pub(super) num: u64,
    pub(super) addr: u64,
}

/// The foreign side of a [`CopySegment`]: reference (4 bytes), offset (2), domain (2).
pub(super) fn foreign(gref: GrantRef, offset: u16, domid: DomId) -> u64 {
    let [a, b, c, d] = gref.0.to_ne_bytes();
    let [e, f] = offset.to_ne_bytes();
    let [g, h] = domid.0.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Calls an ioctl of one of the devices, again after a signal. Returns its non-negative result.
///
/// # Safety
/// `argument` points to the structure that `opcode` has on `device`, and everything it names
/// (counts, addresses) is true and may be read and written until the call returns.
pub(super) unsafe fn ioctl<T: ?Sized>(
    device: impl AsFd,
    opcode: u32,
    argument: *mut T,
) -> io::Result<u32> {
    let fd = device.as_fd().as_raw_fd();
    let argument = argument.cast::<c_void>();
    loop {
        // SAFETY: the caller's promise.
        let result = unsafe { libc::ioctl(fd, opcode.into(), argument) };
        match u32::try_from(result) {
            Ok(result) => return Ok(result),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{align_of, offset_of};

    /// What gcc and clang make of Linux's headers (6.1), for the calls used here.
    const HEADERS: &str = "\
IOCTL_GNTDEV_MAP_GRANT_REF 0x00184700 size=24 align=8 :: count@0/4 pad@4/4 index@8/8 refs@16/8
IOCTL_GNTDEV_UNMAP_GRANT_REF 0x00104701 size=16 align=8 :: index@0/8 count@8/4 pad@12/4
IOCTL_GNTDEV_GRANT_COPY 0x00104708 size=16 align=8 :: count@0/4 segments@8/8
gntdev_grant_copy_segment 0 size=24 align=8 :: source@0/8 dest@8/8 len@16/2 flags@18/2 status@20/2
IOCTL_GNTALLOC_ALLOC_GREF 0x00184705 size=24 align=8 :: domid@0/2 flags@2/2 count@4/4 index@8/8 gref_ids@16/4
IOCTL_GNTALLOC_DEALLOC_GREF 0x00104706 size=16 align=8 :: index@0/8 count@8/4
IOCTL_EVTCHN_BIND_INTERDOMAIN 0x00084501 size=8 align=4 :: remote_domain@0/4 remote_port@4/4
IOCTL_EVTCHN_BIND_UNBOUND_PORT 0x00044502 size=4 align=4 :: remote_domain@0/4
IOCTL_EVTCHN_UNBIND 0x00044503 size=4 align=4 :: port@0/4
IOCTL_EVTCHN_NOTIFY 0x00044504 size=4 align=4 :: port@0/4
IOCTL_PRIVCMD_MMAPBATCH_V2 0x00205004 size=32 align=8 :: num@0/4 dom@4/2 addr@8/8 arr@16/8 err@24/8
IOCTL_PRIVCMD_DM_OP 0x00105005 size=16 align=8 :: dom@0/2 num@2/2 ubufs@8/8
privcmd_dm_op_buf 0 size=16 align=8 :: uptr@0/8 size@8/8
IOCTL_PRIVCMD_MMAP_RESOURCE 0x00205007 size=32 align=8 :: dom@0/2 kind@4/4 id@8/4 idx@12/4 num@16/8 addr@24/8";

    /// One row as the code has it, in the form of the table.
    macro_rules! row {
        ($name:literal, $opcode:expr, $type:ty, $value:expr, $size:expr, { $($field:ident: $bytes:expr),* }) => {{
            let value: &$type = $value;
            let base = ptr_address(value);
            let mut fields = Vec::new();
            $(
                let at = ptr_address(&value.$field) - base;
                fields.push(format!("{}@{at}/{}", stringify!($field), $bytes(&value.$field)));
            )*
            format!(
                "{} {} size={} align={} :: {}",
                $name,
                match $opcode { 0 => "0".to_owned(), n => format!("{n:#010x}") },
                $size,
                core::mem::align_of_val(value),
                fields.join(" ")
            )
        }};
    }

    fn ptr_address<T: ?Sized>(value: &T) -> usize {
        ptr_of(value).addr()
    }

    fn ptr_of<T: ?Sized>(value: &T) -> *const u8 {
        core::ptr::from_ref(value).cast()
    }

    fn sized<T>(_: &T) -> usize {
        size_of::<T>()
    }

    /// A variable array counts as its one declared element.
    fn element<T>(_: &[T]) -> usize {
        size_of::<T>()
    }

    #[test]
    fn opcodes_and_layouts_are_those_of_the_kernel_headers() {
        let map = MapGrantRef::new_box_zeroed_with_elems(1).unwrap();
        // The headers declare one reference; the padding behind it counts.
        let alloc = AllocGref::new_box_zeroed_with_elems(1).unwrap();
        let unmap = UnmapGrantRef {
            index: 0,
            count: 0,
            pad: 0,
        };
        let copy = CopyCall {
            count: 0,
            segments: core::ptr::null_mut(),
        };
        let segment = CopySegment {
            source: 0,
            dest: 0,
            len: 0,
            flags: 0,
            status: 0,
        };
        let dealloc = DeallocGref { index: 0, count: 0 };
        let bind = BindInterdomain {
            remote_domain: 0,
            remote_port: 0,
        };
        let unbound = BindUnbound { remote_domain: 0 };
        let port = Port { port: 0 };
        let batch = MmapBatch {
            num: 0,
            dom: 0,
            addr: 0,
            arr: core::ptr::null(),
            err: core::ptr::null_mut(),
        };
        let dm_op = DmOpCall {
            dom: 0,
            num: 0,
            ubufs: core::ptr::null(),
        };
        let buffer = DmOpBuffer {
            uptr: core::ptr::null_mut(),
            size: 0,
        };
        let resource = MmapResource {
            dom: 0,
            kind: 0,
            id: 0,
            idx: 0,
            num: 0,
            addr: 0,
        };
        let rows = [
            row!("IOCTL_GNTDEV_MAP_GRANT_REF", GNTDEV_MAP_GRANT_REF, MapGrantRef, &map, size_of_val(&*map),
                { count: sized, pad: sized, index: sized, refs: element }),
            row!("IOCTL_GNTDEV_UNMAP_GRANT_REF", GNTDEV_UNMAP_GRANT_REF, UnmapGrantRef, &unmap, size_of_val(&unmap),
                { index: sized, count: sized, pad: sized }),
            row!("IOCTL_GNTDEV_GRANT_COPY", GNTDEV_GRANT_COPY, CopyCall, &copy, size_of_val(&copy),
                { count: sized, segments: sized }),
            row!("gntdev_grant_copy_segment", 0, CopySegment, &segment, size_of_val(&segment),
                { source: sized, dest: sized, len: sized, flags: sized, status: sized }),
            row!("IOCTL_GNTALLOC_ALLOC_GREF", GNTALLOC_ALLOC_GREF, AllocGref, &alloc, size_of_val(&*alloc),
                { domid: sized, flags: sized, count: sized, index: sized, gref_ids: element }),
            row!("IOCTL_GNTALLOC_DEALLOC_GREF", GNTALLOC_DEALLOC_GREF, DeallocGref, &dealloc, size_of_val(&dealloc),
                { index: sized, count: sized }),
            row!("IOCTL_EVTCHN_BIND_INTERDOMAIN", EVTCHN_BIND_INTERDOMAIN, BindInterdomain, &bind, size_of_val(&bind),
                { remote_domain: sized, remote_port: sized }),
            row!("IOCTL_EVTCHN_BIND_UNBOUND_PORT", EVTCHN_BIND_UNBOUND_PORT, BindUnbound, &unbound, size_of_val(&unbound),
                { remote_domain: sized }),
            row!("IOCTL_EVTCHN_UNBIND", EVTCHN_UNBIND, Port, &port, size_of_val(&port), { port: sized }),
            row!("IOCTL_EVTCHN_NOTIFY", EVTCHN_NOTIFY, Port, &port, size_of_val(&port), { port: sized }),
            row!("IOCTL_PRIVCMD_MMAPBATCH_V2", PRIVCMD_MMAPBATCH_V2, MmapBatch, &batch, size_of_val(&batch),
                { num: sized, dom: sized, addr: sized, arr: sized, err: sized }),
            row!("IOCTL_PRIVCMD_DM_OP", PRIVCMD_DM_OP, DmOpCall, &dm_op, size_of_val(&dm_op),
                { dom: sized, num: sized, ubufs: sized }),
            row!("privcmd_dm_op_buf", 0, DmOpBuffer, &buffer, size_of_val(&buffer), { uptr: sized, size: sized }),
            row!("IOCTL_PRIVCMD_MMAP_RESOURCE", PRIVCMD_MMAP_RESOURCE, MmapResource, &resource, size_of_val(&resource),
                { dom: sized, kind: sized, id: sized, idx: sized, num: sized, addr: sized }),
        ];
        for (row, expected) in rows.iter().zip(HEADERS.lines()) {
            assert_eq!(row, expected);
        }
        assert_eq!(rows.len(), HEADERS.lines().count());
    }

    /// `struct ioctl_gntdev_grant_ref { __u32 domid; __u32 ref; }`
    #[test]
    fn a_foreign_reference_is_domain_then_reference() {
        assert_eq!(offset_of!(ForeignRef, domid), 0);
        assert_eq!(offset_of!(ForeignRef, gref), 4);
        assert_eq!((size_of::<ForeignRef>(), align_of::<ForeignRef>()), (8, 4));
    }

    /// `source.foreign`: ref@0/4 offset@4/2 domid@6/2.
    #[test]
    fn the_foreign_side_of_a_copy_is_reference_offset_domain() {
        let bytes = foreign(GrantRef(0x1122_3344), 0x5566, DomId(0x7788)).to_ne_bytes();
        assert_eq!(bytes[..4], 0x1122_3344_u32.to_ne_bytes());
        assert_eq!(bytes[4..6], 0x5566_u16.to_ne_bytes());
        assert_eq!(bytes[6..], 0x7788_u16.to_ne_bytes());
    }
}
