//! Record and replay on real KVM.
use lockstep_protocol::ids::DeviceId;
use lockstep_protocol::record::Input;
use lockstep_vmm::machine::{Machine, MachineSpec};
use lockstep_vmm::virtio::mmio::{DeviceKind, MmioDevice};

#[test]
fn boots() {
    let image = std::fs::read(std::env::var("GUEST").unwrap()).unwrap();
    let devices = vec![MmioDevice::new(DeviceId::new(0), DeviceKind::Net, 0, vec![0; 12]), MmioDevice::new(DeviceId::new(1), DeviceKind::Blk, 0, vec![0; 60])];
    let mut m = Machine::build(MachineSpec { memory_mib: 64, image: &image, cmdline: "ip=10.77.0.2/24".into(), devices }).unwrap();
    m.inject(&Input::PowerOn { seed: [1; 32] }).unwrap();
    let t = std::time::Instant::now();
    for _ in 0..2000 {
        let exit = m.step().unwrap();
        let c = m.take_console();
        if !c.is_empty() { print!("{}", String::from_utf8_lossy(&c)); }
        if exit.end.is_some() { println!("{exit:?}"); break; }
    }
    println!("{:?} {}", t.elapsed(), m.position());
}
