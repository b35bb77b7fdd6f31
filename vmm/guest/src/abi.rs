//! The contract between the VMM and the micro guest: addresses, ports, the boot page and the processor state at entry.
//!
//! The guest uses it as a module; the VMM includes this very file by `#[path]`, so both sides are compiled from one
//! text. It depends on `core` alone, does no I/O and never touches memory that it was not given as a slice.
//!
//! The state at entry, which the VMM sets up:
//! - 64-bit mode at ring 3, interrupts never delivered, `rip` = the ELF entry, `rdi` = [`BOOT_PAGE`]. The guest takes
//!   its own stack. SSE works (CR4.OSFXSR). Any exception is the end of the VM.
//! - The low 4 GiB are identity-mapped and accessible to ring 3. RAM runs from 0 to `mem_size`; below
//!   [`IMAGE_BASE`] the VMM may keep what it likes beside the boot and the clock page, everything from there up
//!   belongs to the guest.
//! - The TSS has an I/O bitmap that opens the ports below.
//! - The disk takes requests in their order: a flush covers every write queued before it, done or not. A request
//!   carries at most [`DISK_TRANSFER_MAX`] bytes of data.
//! - Two virtio-mmio (version 2) register files of [`MMIO_BYTES`] each; queues are polled, nothing interrupts.

/// First bytes of the boot page: `LOCKSTEP` in ASCII.
pub const BOOT_MAGIC: u64 = u64::from_le_bytes(*b"LOCKSTEP");
/// Raised whenever anything in this file changes its meaning.
pub const ABI_VERSION: u32 = 1;

/// Where the guest's ELF image is linked; it is a static EXEC.
pub const IMAGE_BASE: u64 = 0x40_0000;
/// Where the boot page lies; `rdi` holds this at entry.
pub const BOOT_PAGE: u64 = 0x1000;
/// Where the clock page lies: a pvclock page that moves only in windows.
pub const CLOCK_PAGE: u64 = 0x2000;
/// Offset of pvclock's `system_time` in the clock page: a `u64` of nanoseconds of guest time.
pub const CLOCK_SYSTEM_TIME_OFFSET: u64 = 16;
/// Registers of the network device.
pub const NET_MMIO: u64 = 0xd000_0000;
/// Registers of the disk.
pub const BLK_MMIO: u64 = 0xd000_1000;
/// Size of one device's register file.
pub const MMIO_BYTES: u64 = 0x1000;
/// Most data bytes of one disk request.
pub const DISK_TRANSFER_MAX: u32 = 1 << 20;
/// RAM must end at or below this, so that it never covers device registers.
pub const MAX_MEM_SIZE: u64 = NET_MMIO;
/// Less RAM than this is refused by the guest.
pub const MIN_MEM_SIZE: u64 = 16 << 20;

/// Serial port, transmit register: `out dx, al` prints a byte.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Serial port, line status register: reads as [`SERIAL_READY`], there is always room.
pub const SERIAL_STATUS_PORT: u16 = 0x3fd;
/// Line status of a transmitter that is empty.
pub const SERIAL_READY: u8 = 0x60;

/// `out dx, eax`: the guest has nothing to do. `eax` = how many microseconds to wait at most for an input;
/// 0 opens a window without waiting, [`IDLE_FOREVER`] waits without a limit.
pub const IDLE_PORT: u16 = 0x510;
/// Wait for an input however long it takes.
pub const IDLE_FOREVER: u32 = 0xffff_ffff;

/// `out dx, al`: the VM ends here, with one of the `POWER_` codes.
pub const POWER_PORT: u16 = 0x514;
/// The guest was asked to shut down and has flushed its disk.
pub const POWER_OFF: u8 = 0;
/// The guest panicked; the reason was printed on the serial port.
pub const POWER_PANIC: u8 = 1;

/// Bytes of the seed, the only randomness that the guest ever sees.
pub const SEED_BYTES: usize = 32;
/// Longest command line.
pub const CMDLINE_MAX: usize = 2048;
/// How many bytes of the boot page carry meaning.
pub const BOOT_PAGE_BYTES: usize = CMDLINE_OFFSET + CMDLINE_MAX;

const VERSION_OFFSET: usize = 8;
// Four bytes of padding come here.
const MEM_SIZE_OFFSET: usize = 16;
const CLOCK_PAGE_OFFSET: usize = 24;
const NET_MMIO_OFFSET: usize = 32;
const BLK_MMIO_OFFSET: usize = 40;
const SEED_OFFSET: usize = 48;
const CMDLINE_LEN_OFFSET: usize = SEED_OFFSET + SEED_BYTES;
const CMDLINE_OFFSET: usize = CMDLINE_LEN_OFFSET + 4;

const _: () = assert!(BOOT_PAGE_BYTES <= 4096);

/// What the VMM tells the guest at power-on. In memory it is little-endian with the layout of a C structure:
/// magic `u64`, version `u32`, padding `u32`, `mem_size`, `clock_page`, `net_mmio` and `blk_mmio` `u64` each,
/// 32 bytes of seed, length of the command line `u32`, 2048 bytes of command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootPage<'a> {
    /// Bytes of RAM, from address 0.
    pub mem_size: u64,
    /// Address of the clock page.
    pub clock_page: u64,
    /// Address of the network device's registers, 0 if there is none.
    pub net_mmio: u64,
    /// Address of the disk's registers, 0 if there is none.
    pub blk_mmio: u64,
    /// Randomness.
    pub seed: [u8; SEED_BYTES],
    /// Words such as `ip=10.77.0.2/24 gw=10.77.0.1 port=6379`, separated by blanks.
    pub cmdline: &'a str,
}

/// Why bytes are no boot page, or why a boot page cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootPageError {
    /// The slice is shorter than [`BOOT_PAGE_BYTES`].
    Short,
    /// The magic is missing.
    Magic,
    /// Another [`ABI_VERSION`].
    Version(u32),
    /// The command line is longer than [`CMDLINE_MAX`] or no UTF-8.
    Cmdline,
}

impl<'a> BootPage<'a> {
    /// A boot page with the usual addresses; the VMM fills in the rest.
    pub fn new(mem_size: u64, seed: [u8; SEED_BYTES], cmdline: &'a str) -> Self {
        BootPage {
            mem_size,
            clock_page: CLOCK_PAGE,
            net_mmio: NET_MMIO,
            blk_mmio: BLK_MMIO,
            seed,
            cmdline,
        }
    }

    /// The bytes to be laid at [`BOOT_PAGE`].
    pub fn encode(&self) -> Result<[u8; BOOT_PAGE_BYTES], BootPageError> {
        let cmdline = self.cmdline.as_bytes();
        if cmdline.len() > CMDLINE_MAX {
            return Err(BootPageError::Cmdline);
        }
        let mut page = [0; BOOT_PAGE_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| page[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &BOOT_MAGIC.to_le_bytes());
        put(VERSION_OFFSET, &ABI_VERSION.to_le_bytes());
        put(MEM_SIZE_OFFSET, &self.mem_size.to_le_bytes());
        put(CLOCK_PAGE_OFFSET, &self.clock_page.to_le_bytes());
        put(NET_MMIO_OFFSET, &self.net_mmio.to_le_bytes());
        put(BLK_MMIO_OFFSET, &self.blk_mmio.to_le_bytes());
        put(SEED_OFFSET, &self.seed);
        put(CMDLINE_LEN_OFFSET, &(cmdline.len() as u32).to_le_bytes());
        put(CMDLINE_OFFSET, cmdline);
        Ok(page)
    }

    /// Reads the bytes at [`BOOT_PAGE`].
    pub fn decode(page: &'a [u8]) -> Result<Self, BootPageError> {
        let page = page.get(..BOOT_PAGE_BYTES).ok_or(BootPageError::Short)?;
        if long(page, 0) != BOOT_MAGIC {
            return Err(BootPageError::Magic);
        }
        let version = word(page, VERSION_OFFSET);
        if version != ABI_VERSION {
            return Err(BootPageError::Version(version));
        }
        let mut seed = [0; SEED_BYTES];
        seed.copy_from_slice(&page[SEED_OFFSET..SEED_OFFSET + SEED_BYTES]);
        let len = word(page, CMDLINE_LEN_OFFSET) as usize;
        let cmdline = page[CMDLINE_OFFSET..].get(..len).ok_or(BootPageError::Cmdline)?;
        Ok(BootPage {
            mem_size: long(page, MEM_SIZE_OFFSET),
            clock_page: long(page, CLOCK_PAGE_OFFSET),
            net_mmio: long(page, NET_MMIO_OFFSET),
            blk_mmio: long(page, BLK_MMIO_OFFSET),
            seed,
            cmdline: core::str::from_utf8(cmdline).map_err(|_| BootPageError::Cmdline)?,
        })
    }
}

fn word(page: &[u8], offset: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&page[offset..offset + 4]);
    u32::from_le_bytes(bytes)
}

fn long(page: &[u8], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page[offset..offset + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_page_comes_back_as_it_was_written() {
        let boot = BootPage::new(64 << 20, [7; SEED_BYTES], "ip=10.77.0.2/24 port=6379");
        let page = boot.encode().unwrap();
        assert_eq!(BootPage::decode(&page).unwrap(), boot);
    }

    #[test]
    fn a_page_of_zeros_is_refused() {
        assert_eq!(BootPage::decode(&[0; 4096]), Err(BootPageError::Magic));
    }

    #[test]
    fn a_command_line_that_claims_too_much_is_refused() {
        let mut page = BootPage::new(0, [0; SEED_BYTES], "").encode().unwrap();
        page[CMDLINE_LEN_OFFSET..CMDLINE_LEN_OFFSET + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(BootPage::decode(&page), Err(BootPageError::Cmdline));
    }
}
