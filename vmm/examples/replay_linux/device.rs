//! The device processes of the recorded machine. They are killed with the values here; the replayed machine has none.

use anyhow::{Context, bail};
use lockstep_protocol::ids::DeviceId;
use lockstep_vmm::ft::port::DevicePort;
use lockstep_vmm::virtio::mmio::DeviceKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// A device process, for as long as this value lives.
pub(crate) struct Device {
    process: Child,
    id: DeviceId,
    kind: DeviceKind,
    sockets: [PathBuf; 2],
}

/// Starts what there is to drive; sockets go into `folder`.
pub(crate) fn start(tap: Option<&str>, disk: Option<&Path>, folder: &Path) -> anyhow::Result<Vec<Device>> {
    let mut devices = Vec::new();
    if let Some(tap) = tap {
        let arguments = ["--tap", tap, "--mac", MAC];
        devices.push(Device::start(0, DeviceKind::Net, &arguments, folder)?);
    }
    if let Some(disk) = disk {
        let disk = disk.to_str().context("The disk's path is not text")?;
        let (id, arguments) = (u8::from(tap.is_some()), ["--disk", disk, "--mode", "shared"]);
        devices.push(Device::start(id, DeviceKind::Blk, &arguments, folder)?);
    }
    Ok(devices)
}

impl Device {
    fn start(id: u8, kind: DeviceKind, arguments: &[&str], folder: &Path) -> anyhow::Result<Self> {
        let name = match kind {
            DeviceKind::Net => "net",
            DeviceKind::Blk => "blk",
        };
        let sockets = ["vhost", "staging"].map(|end| folder.join(format!("{name}-{end}.sock")));
        let process = Command::new(program(&format!("vhost-{name}-ft"))?)
            .arg("--socket")
            .arg(&sockets[0])
            .arg("--staging")
            .arg(&sockets[1])
            .args(arguments)
            .spawn()
            .with_context(|| format!("Cannot start vhost-{name}-ft"))?;
        Ok(Self {
            process,
            id: DeviceId::new(id),
            kind,
            sockets,
        })
    }

    /// Connects to it; what it holds may leave at once, since nobody protects this machine.
    pub(crate) fn connect(&self) -> anyhow::Result<DevicePort> {
        let port = DevicePort::connect(self.id, self.kind, &self.sockets[0], &self.sockets[1])?;
        port.go_live_alone();
        Ok(port)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // It may be gone already; either way nothing of it is left after the wait.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("Cannot tell where this program lies")?;
    let found = own
        .ancestors()
        .map(|folder| folder.join(name))
        .find(|program| program.is_file());
    match found {
        Some(program) => Ok(program),
        None => bail!("There is no {name} near {}", own.display()),
    }
}

const MAC: &str = "52:54:00:4c:53:01";
