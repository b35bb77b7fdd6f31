//! A bzImage's payload, unpacked on the host: the guest's own unpacking code would run `rdtsc` before we could rewrite it.
//!
//! The Linux boot calls [`unpack`]; a file that is an ELF file already is passed through. The payload is found by the
//! boot protocol's header (Documentation/arch/x86/boot.rst) and its packing by its first bytes. What comes out is
//! bounded, whatever the file claims.

use std::borrow::Cow;
use std::io::{self, Read};

/// No kernel is larger than this when unpacked.
const UNPACKED_MAX: u64 = 512 << 20;
/// A block of the lz4 tool's legacy format is at most this long when unpacked.
const LZ4_BLOCK: usize = 8 << 20;
/// Memory for the windows of xz, in KiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;
/// `version` of the first protocol with a described payload.
const PROTOCOL_WITH_PAYLOAD: u16 = 0x0208;
const SECTOR: usize = 512;

/// Why a kernel file could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Neither ELF nor bzImage.
    #[error("The kernel is neither a vmlinux nor a bzImage")]
    NoKernel,
    /// An old one.
    #[error(
        "The kernel is too old: its boot protocol is {0:#x}, and 0x208 is the first that says where the payload is"
    )]
    Old(u16),
    /// Cut off.
    #[error("The kernel file ends inside its payload")]
    Short,
    /// An unknown packing.
    #[error("The kernel is packed in a way that Lockstep does not know (it begins with {0:02x?})")]
    Packing([u8; 4]),
    /// The payload is damaged or too large.
    #[error("The kernel's payload cannot be unpacked")]
    Payload(#[source] io::Error),
}

/// The ELF file in `kernel`.
///
/// # Errors
/// When there is none, or it cannot be unpacked.
pub fn unpack(kernel: &[u8]) -> Result<Cow<'_, [u8]>, UnpackError> {
    if kernel.starts_with(b"\x7fELF") {
        return Ok(Cow::Borrowed(kernel));
    }
    unpack_payload(payload(kernel)?).map(Cow::Owned)
}

fn payload(kernel: &[u8]) -> Result<&[u8], UnpackError> {
    if kernel.get(0x202..0x206) != Some(b"HdrS") {
        return Err(UnpackError::NoKernel);
    }
    let word = |at: usize| {
        kernel
            .get(at..at + 4)
            .map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]))
    };
    let protocol = kernel
        .get(0x206..0x208)
        .map_or(0, |v| u16::from_le_bytes([v[0], v[1]]));
    if protocol < PROTOCOL_WITH_PAYLOAD {
        return Err(UnpackError::Old(protocol));
    }
    let sectors = match usize::from(kernel[0x1f1]) {
        0 => 4,
        sectors => sectors,
    };
    let (offset, length) = word(0x248).zip(word(0x24c)).ok_or(UnpackError::Short)?;
    let start = (sectors + 1) * SECTOR + offset as usize;
    kernel
        .get(start..start + length as usize)
        .ok_or(UnpackError::Short)
}

fn unpack_payload(payload: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let (&magic, _) = payload.split_first_chunk::<4>().ok_or(UnpackError::Short)?;
    let unpacked = match magic {
        [0x7f, b'E', b'L', b'F'] => Ok(payload.to_vec()),
        [0x1f, 0x8b, ..] => read(flate2::read::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X'] => read(lzma_rust2::XzReader::new_mem_limit(payload, false, XZ_MEMORY_KIB)),
        [0x5d, 0x00, 0x00, _] => {
            lzma_rust2::LzmaReader::new_mem_limit(payload, XZ_MEMORY_KIB, None).and_then(read)
        }
        [0x28, 0xb5, 0x2f, 0xfd] => ruzstd::decoding::StreamingDecoder::new(payload)
            .map_err(io::Error::other)
            .and_then(read),
        [0x02, 0x21, 0x4c, 0x18] => unpack_lz4(&payload[4..]),
        [0x89, b'L', b'Z', b'O'] => unpack_lzo(payload),
        _ => return Err(UnpackError::Packing(magic)),
    };
    unpacked.map_err(UnpackError::Payload)
}

fn read(packed: impl Read) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    packed.take(UNPACKED_MAX + 1).read_to_end(&mut unpacked)?;
    bounded(unpacked)
}

fn bounded(unpacked: Vec<u8>) -> io::Result<Vec<u8>> {
    if unpacked.len() as u64 > UNPACKED_MAX {
        Err(damaged("it is too large"))
    } else {
        Ok(unpacked)
    }
}

/// The legacy format: blocks with their packed length in front; the kernel's build puts the unpacked length behind them.
fn unpack_lz4(packed: &[u8]) -> io::Result<Vec<u8>> {
    let (mut rest, size) = packed
        .split_last_chunk::<4>()
        .ok_or_else(|| damaged("it is too short"))?;
    let size = u32::from_le_bytes(*size) as usize;
    let mut unpacked = Vec::new();
    while unpacked.len() < size {
        let (length, blocks) = rest
            .split_first_chunk::<4>()
            .ok_or_else(|| damaged("a block is missing"))?;
        let (block, later) = blocks
            .split_at_checked(u32::from_le_bytes(*length) as usize)
            .ok_or_else(|| damaged("a block is cut off"))?;
        unpacked.extend(lz4_flex::block::decompress(block, LZ4_BLOCK).map_err(io::Error::other)?);
        unpacked = bounded(unpacked)?;
        rest = later;
    }
    Ok(unpacked)
}

/// The lzop format: a header, then blocks of unpacked length, packed length and checksums.
fn unpack_lzo(packed: &[u8]) -> io::Result<Vec<u8>> {
    const HEADER: usize = 9;
    const WITH_CHECKSUMS: [u32; 4] = [0x1, 0x100, 0x2, 0x200];
    let mut input = packed.get(HEADER..).ok_or_else(|| damaged("it is too short"))?;
    let mut take = |count: usize| {
        let (taken, rest) = input
            .split_at_checked(count)
            .ok_or_else(|| damaged("it is cut off"))?;
        input = rest;
        Ok::<_, io::Error>(taken)
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum: u32, byte| sum << 8 | u32::from(*byte));
    let version = number(take(2)?);
    take(if version >= 0x940 { 2 + 2 + 1 + 1 } else { 2 + 1 })?;
    let flags = number(take(4)?);
    take(if flags & 0x800 != 0 { 4 } else { 0 })?;
    take(if version >= 0x940 { 4 + 4 + 4 } else { 4 + 4 })?;
    let name = number(take(1)?) as usize;
    take(name + 4)?;
    let present = |which: [u32; 2]| 4 * which.iter().filter(|flag| flags & **flag != 0).count();
    let [plain_sums, packed_sums] = [
        [WITH_CHECKSUMS[0], WITH_CHECKSUMS[1]],
        [WITH_CHECKSUMS[2], WITH_CHECKSUMS[3]],
    ];
    let mut unpacked = Vec::new();
    loop {
        let size = number(take(4)?) as usize;
        if size == 0 {
            return Ok(unpacked);
        }
        let packed_size = number(take(4)?) as usize;
        take(
            present(plain_sums)
                + if packed_size < size {
                    present(packed_sums)
                } else {
                    0
                },
        )?;
        let block = take(packed_size)?;
        if packed_size < size {
            unpacked.extend(
                lzokay_native::decompress_all(block, Some(size.min(LZ4_BLOCK))).map_err(io::Error::other)?,
            );
        } else {
            unpacked.extend_from_slice(block);
        }
        unpacked = bounded(unpacked)?;
    }
}

fn damaged(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests;
