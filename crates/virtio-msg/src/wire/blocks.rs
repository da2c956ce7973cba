//! The feature blocks that two messages carry (virtio-msg sections 5.2 and 5.3).

use crate::features::Features;
use alloc::borrow::Cow;
use alloc::vec::Vec;

/// Consecutive blocks of 32 feature bits, as they stand in a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FeatureBlocks<'a>(Cow<'a, [u8]>);

impl FeatureBlocks<'_> {
    /// Bytes of one block.
    pub(crate) const BLOCK_BYTES: usize = 4;
}

impl<'a> FeatureBlocks<'a> {
    /// `bytes` holds whole blocks: a length that is a multiple of four. Bytes past the last whole block are left out.
    #[must_use]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let whole = bytes.len() - bytes.len() % Self::BLOCK_BYTES;
        FeatureBlocks(Cow::Borrowed(bytes.get(..whole).unwrap_or_default()))
    }

    /// `count` blocks of `features` from block `first` on; blocks past the end are zero.
    #[must_use]
    pub fn of(features: Features, first: u32, count: u32) -> FeatureBlocks<'static> {
        let bytes = (0..count)
            .map(|i| {
                first
                    .checked_add(i)
                    .map_or(0, |index| features.block(index))
            })
            .flat_map(u32::to_le_bytes)
            .collect::<Vec<u8>>();
        FeatureBlocks(Cow::Owned(bytes))
    }

    /// How many blocks there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.0.len() / Self::BLOCK_BYTES).unwrap_or(u32::MAX)
    }

    /// The blocks in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0
            .as_chunks::<{ FeatureBlocks::BLOCK_BYTES }>()
            .0
            .iter()
            .map(|block| u32::from_le_bytes(*block))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same blocks, free of the frame that they came in.
    #[must_use]
    pub fn into_owned(self) -> FeatureBlocks<'static> {
        FeatureBlocks(Cow::Owned(self.0.into_owned()))
    }
}
