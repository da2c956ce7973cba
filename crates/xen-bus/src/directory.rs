//! Directory pages: how AREA_SHARE names data pages whose references come in any order (binding
//! section 6). Word 0 of a directory page is the reference of the next one, 0 in the last; the
//! other words are the references of data pages, in order.
//!
//! The frontend writes them here; the backend's reading is [`crate::areas::ShareJob`].

use guest_memory::{GuestRange, RangeError};
use xen_types::{GrantRef, PAGE_SIZE};

/// Bytes of a reference.
const REF_LEN: usize = 4;

/// References of data pages in one directory page.
pub const REFS_PER_DIRECTORY: usize = PAGE_SIZE / REF_LEN - 1;

/// How many directory pages `data_pages` data pages need.
#[must_use]
pub const fn directory_pages(data_pages: usize) -> usize {
    data_pages.div_ceil(REFS_PER_DIRECTORY)
}

/// Why a directory was not written; all are mistakes of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// Not as many directory pages as [`directory_pages`] says.
    #[error("{data} data pages need {needed} directory pages, {got} were given")]
    Pages {
        /// Data pages.
        data: usize,
        /// Directory pages needed.
        needed: usize,
        /// Directory pages given.
        got: usize,
    },
    /// The window does not hold the directory pages, or is read-only.
    #[error(transparent)]
    Window(#[from] RangeError),
}

/// Writes a directory of `data` into `window`, whose pages are granted as `directory`, in order.
/// AREA_SHARE then names the first of `directory`.
///
/// # Errors
/// The number of directory pages is not the one needed, or `window` does not hold them.
pub fn write_directory(
    data: &[GrantRef],
    directory: &[GrantRef],
    window: GuestRange<'_>,
) -> Result<(), DirectoryError> {
    let needed = directory_pages(data.len());
    if directory.len() != needed {
        return Err(DirectoryError::Pages {
            data: data.len(),
            needed,
            got: directory.len(),
        });
    }
    let nexts = directory.iter().skip(1).chain([&GrantRef(0)]);
    let offsets = (0..).step_by(PAGE_SIZE);
    for ((refs, next), offset) in data.chunks(REFS_PER_DIRECTORY).zip(nexts).zip(offsets) {
        let mut page: Vec<u8> = std::iter::once(next)
            .chain(refs)
            .flat_map(|gref| gref.0.to_le_bytes())
            .collect();
        page.resize(PAGE_SIZE, 0);
        window.write(offset, &page)?;
    }
    Ok(())
}

/// The words of a directory page that was copied: the next page's reference, then data pages.
pub(crate) fn parse(page: &[u8; PAGE_SIZE]) -> impl Iterator<Item = GrantRef> {
    let (words, _) = page.as_chunks::<REF_LEN>();
    words.iter().map(|word| GrantRef(u32::from_le_bytes(*word)))
}

#[cfg(test)]
mod tests {
    use guest_memory::{Access, Area};

    use super::*;

    fn grefs(numbers: std::ops::Range<u32>) -> Vec<GrantRef> {
        numbers.map(GrantRef).collect()
    }

    #[test]
    fn a_directory_page_holds_1023_references() {
        for (data, pages) in [(0, 0), (1, 1), (1023, 1), (1024, 2), (2046, 2), (4096, 5)] {
            assert_eq!(directory_pages(data), pages, "{data}");
        }
    }

    #[test]
    fn pages_are_chained_and_the_rest_is_zero() {
        let area = Area::anonymous(2 * PAGE_SIZE).unwrap();
        let window = area.range(0, 2 * 4096, Access::Write).unwrap();
        window.write(4096 + 12, b"old bytes").unwrap();
        let data = grefs(100..1125);
        write_directory(&data, &[GrantRef(9), GrantRef(8)], window).unwrap();

        let first: Vec<_> = parse(&window.read_array(0).unwrap()).collect();
        assert_eq!(first[0], GrantRef(8));
        assert_eq!(first[1..], data[..1023]);
        let second: Vec<_> = parse(&window.read_array(4096).unwrap()).collect();
        assert_eq!(second[..3], [GrantRef(0), GrantRef(1123), GrantRef(1124)]);
        assert!(second[3..].iter().all(|gref| *gref == GrantRef(0)));
    }

    #[test]
    fn a_wrong_number_of_pages_is_told() {
        let area = Area::anonymous(PAGE_SIZE).unwrap();
        let window = area.range(0, 4096, Access::Write).unwrap();
        let error = write_directory(&grefs(1..1026), &[GrantRef(9)], window).unwrap_err();
        assert_eq!(
            error.to_string(),
            "1025 data pages need 2 directory pages, 1 were given"
        );
        let error = write_directory(&grefs(1..1026), &grefs(1..3), window).unwrap_err();
        assert!(matches!(error, DirectoryError::Window(_)));
    }
}
