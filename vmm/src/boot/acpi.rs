//! The ACPI tables of a stock guest: how Debian's kernel finds virtio-mmio devices, and how it switches off.
//!
//! The Linux boot writes them once. There is no PCI in them, and an APIC only for several vCPUs: with one, interrupts go
//! through the 8259 pair. Either way the kernel sets up level lines from the resources named here.

use crate::abi::{MMIO_BYTES, NET_MMIO};
use crate::board::pc::DEVICE_IRQS;
use crate::board::{power, rtc, uart};
use crate::vcpu::VcpuCount;
use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ONE, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

/// Where the tables begin: the root pointer, where every kernel looks for it.
pub const TABLES: u64 = 0xe_0000;
/// What the tables may take: up to the end of the first MiB.
const TABLES_MAX: usize = 0x2_0000;

const OEM: [u8; 6] = *b"LOCKST";
const OEM_TABLE: [u8; 8] = *b"LOCKSTEP";
const SCI: u16 = 9;
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// `IAPC_BOOT_ARCH`: there are devices on the ISA bus; there is no keyboard controller to speak of, and no VGA.
const BOOT_ARCH: u16 = 0x01 | 0x04;

/// All tables, to be written at [`TABLES`].
#[must_use]
pub fn tables(devices: usize, vcpus: VcpuCount) -> Vec<u8> {
    let (facs, dsdt, fadt, xsdt, madt) = (0x40, 0x80, 0x1000, 0x1200, 0x1400);
    let at = |offset: usize| TABLES + offset as u64;
    let mut image = Vec::new();
    let mut put = |offset: usize, table: &[u8]| {
        let end = offset + table.len();
        assert!(end <= TABLES_MAX, "the tables of a few devices are small");
        image.resize(image.len().max(end), 0);
        image[offset..end].copy_from_slice(table);
    };
    put(0, &bytes(&Rsdp::new(OEM, at(xsdt))));
    put(facs, &facs_table());
    let dsdt_bytes = dsdt_table(devices);
    assert!(
        dsdt + dsdt_bytes.len() <= fadt,
        "the DSDT of a few devices is small"
    );
    put(dsdt, &dsdt_bytes);
    put(fadt, &fadt_table(at(facs), at(dsdt)));
    let mut root = XSDT::new(OEM, OEM_TABLE, 1);
    root.add_entry(at(fadt));
    if vcpus.is_several() {
        root.add_entry(at(madt));
        put(madt, &bytes(&madt_table(vcpus)));
    }
    put(xsdt, &bytes(&root));
    image
}

/// The local APIC of each vCPU, and the one IO-APIC, where KVM has them. Its inputs are those of the 8259 pair.
fn madt_table(vcpus: VcpuCount) -> MADT {
    let local = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, 1, local);
    for number in 0..vcpus.get() {
        madt.add_structure(ProcessorLocalApic::new(number, number, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus.get(), IO_APIC, 0));
    madt
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A firmware control structure without anything in it.
fn facs_table() -> [u8; 64] {
    let mut facs = [0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = 64;
    facs[32] = 1;
    facs
}

fn fadt_table(facs: u64, dsdt: u64) -> Vec<u8> {
    let port = |port: u16, bits: u8, access: AccessSize| {
        GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
    };
    let small = |address: u64| u32::try_from(address).expect("the tables lie in the first MiB");
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1)
        .firmware_ctrl_32(small(facs))
        .dsdt_32(small(dsdt))
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = SCI.into();
    fadt.pm1a_evt_blk = u32::from(power::EVENTS).into();
    fadt.pm1a_cnt_blk = u32::from(power::CONTROL).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len) = (4, 2);
    fadt.x_pm1a_evt_blk = port(power::EVENTS, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(power::CONTROL, 16, AccessSize::WordAccess);
    fadt.reset_reg = port(power::RESET, 8, AccessSize::ByteAccess);
    fadt.reset_value = power::RESET_VALUE;
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.century = rtc::CENTURY;
    // No processor sleep states: latencies beyond what the specification allows.
    (fadt.p_lvl2_lat, fadt.p_lvl3_lat) = (0x0fff.into(), 0x0fff.into());
    bytes(&fadt.finalize())
}

fn dsdt_table(devices: usize) -> Vec<u8> {
    let irq = |number: u8, edge: bool| Interrupt::new(true, edge, false, false, number.into());
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, 1);
    let mut add = |term: &dyn Aml| dsdt.append_slice(&bytes(term));
    let off = u8::try_from(power::OFF).expect("a sleep type has three bits");
    add(&Name::new(
        "_S5_".into(),
        &Package::new(vec![&off, &off, &ZERO, &ZERO]),
    ));

    let serial_ports = IO::new(uart::BASE, uart::BASE, 1, 8);
    let serial_irq = irq(4, true);
    let serial_resources = ResourceTemplate::new(vec![&serial_ports, &serial_irq]);
    let (serial_id, serial_crs) = (
        Name::new("_HID".into(), &EISAName::new("PNP0501")),
        Name::new("_CRS".into(), &serial_resources),
    );
    let serial_uid = Name::new("_UID".into(), &ONE);
    let serial = Device::new("COM1".into(), vec![&serial_id, &serial_uid, &serial_crs]);

    let (clock_ports, clock_irq) = (IO::new(rtc::INDEX, rtc::INDEX, 1, 2), irq(8, true));
    let clock_resources = ResourceTemplate::new(vec![&clock_ports, &clock_irq]);
    let (clock_id, clock_crs) = (
        Name::new("_HID".into(), &EISAName::new("PNP0B00")),
        Name::new("_CRS".into(), &clock_resources),
    );
    let clock = Device::new("RTC_".into(), vec![&clock_id, &clock_crs]);
    add(&Scope::new("_SB_".into(), vec![&serial, &clock]));
    for index in 0..devices {
        add(&Scope::new("_SB_".into(), vec![&VirtioDevice { index }]));
    }
    dsdt.update_checksum();
    dsdt.as_slice().to_vec()
}

/// One virtio-mmio window, as Linux's own driver matches it.
struct VirtioDevice {
    index: usize,
}

impl Aml for VirtioDevice {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let index = u32::try_from(self.index).expect("there are few devices");
        let base = u32::try_from(NET_MMIO + u64::from(index) * MMIO_BYTES).expect("windows lie below 4 GiB");
        let window = Memory32Fixed::new(true, base, u32::try_from(MMIO_BYTES).expect("a window is a page"));
        let irq = Interrupt::new(true, false, false, false, DEVICE_IRQS[self.index].get().into());
        let resources = ResourceTemplate::new(vec![&window, &irq]);
        let id = Name::new("_HID".into(), &"LNRO0005");
        let uid = Name::new("_UID".into(), &index);
        let crs = Name::new("_CRS".into(), &resources);
        let name = format!("VIO{index}");
        Device::new(Path::new(&name), vec![&id, &uid, &crs]).to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums_to_zero(bytes: &[u8]) -> bool {
        bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) == 0
    }

    #[test]
    fn every_table_is_where_the_one_before_says_and_sums_to_zero() {
        let image = tables(2, VcpuCount::ONE);
        let long =
            |at: usize| usize::try_from(u64::from_le_bytes(image[at..at + 8].try_into().unwrap())).unwrap();
        let table = |address: usize| {
            let start = address - usize::try_from(TABLES).unwrap();
            let length = u32::from_le_bytes(image[start + 4..start + 8].try_into().unwrap());
            (start, &image[start..start + length as usize])
        };
        assert!(image.starts_with(b"RSD PTR "));
        assert!(sums_to_zero(&image[..36]));
        let (xsdt_at, xsdt) = table(long(24));
        assert!(xsdt.starts_with(b"XSDT") && sums_to_zero(xsdt));
        let (fadt_at, fadt) = table(long(xsdt_at + 36));
        assert!(fadt.starts_with(b"FACP") && sums_to_zero(fadt));
        let (_, dsdt) = table(long(fadt_at + 140));
        assert!(dsdt.starts_with(b"DSDT") && sums_to_zero(dsdt));
        assert_eq!(dsdt.windows(8).filter(|window| window == b"LNRO0005").count(), 2);
    }
    #[test]
    fn several_vcpus_are_listed_with_the_io_apic_and_one_is_not() {
        let several = tables(2, VcpuCount::new(3).unwrap());
        let madt = several.windows(4).position(|word| word == b"APIC").unwrap();
        let length = u32::from_le_bytes(several[madt + 4..madt + 8].try_into().unwrap()) as usize;
        assert_eq!(length, 44 + 3 * 8 + 12);
        assert!(sums_to_zero(&several[madt..madt + length]));
        assert!(!tables(2, VcpuCount::ONE).windows(4).any(|word| word == b"APIC"));
    }
}
