//! Starts the device processes of a node and ends them with it.
//!
//! The run loop calls it before the machine is built. Somebody else's device processes (named by their sockets in the
//! configuration) are left alone. Nothing here speaks their protocols.

use crate::config::{Config, DeviceSockets, DiskMode, Node};
use crate::virtio::mmio::DeviceKind;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// Why a device process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program is not where it must be.
    #[error("Cannot start {}; it must lie beside the lockstep program", .0.display())]
    Start(PathBuf, #[source] io::Error),
    /// Our own place is unknown.
    #[error("Cannot tell where the lockstep program lies")]
    OwnPath(#[source] io::Error),
    /// The configuration lacks something.
    #[error("The configuration gives node {0} no {1}")]
    Missing(String, &'static str),
    /// An old socket is in the way.
    #[error("Cannot remove the old socket {}", .0.display())]
    OldSocket(PathBuf, #[source] io::Error),
}

/// A device process, or where somebody else's listens. A process of ours dies with this value.
#[derive(Debug)]
pub struct DeviceProcess {
    /// What it drives.
    pub kind: DeviceKind,
    /// Where it listens.
    pub sockets: DeviceSockets,
    child: Option<Child>,
}

impl DeviceProcess {
    /// Its process id, if it is ours.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it is ours and has ended already; it said itself why.
    pub fn has_ended(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }
}

impl Drop for DeviceProcess {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        // It may be gone already; either way nothing of it is left after the wait.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Starts whatever device processes the VM of `config` needs on `node`.
///
/// # Errors
/// When one cannot be started.
pub fn device_processes(config: &Config, node: &Node) -> Result<Vec<DeviceProcess>, SpawnError> {
    let mut processes = Vec::new();
    if let Some(net) = &config.vm.net {
        processes.push(match &node.net_process {
            Some(sockets) => foreign(DeviceKind::Net, sockets),
            None => {
                let tap = node
                    .tap
                    .as_ref()
                    .ok_or_else(|| SpawnError::Missing(node.name.to_string(), "tap"))?;
                let mac = net.mac.map(|byte| format!("{byte:02x}")).join(":");
                start(DeviceKind::Net, node, &["--tap", tap, "--mac", &mac])?
            }
        });
    }
    if let Some(vm_disk) = &config.vm.disk {
        processes.push(match &node.blk_process {
            Some(sockets) => foreign(DeviceKind::Blk, sockets),
            None => {
                let disk = node
                    .disk
                    .as_ref()
                    .ok_or_else(|| SpawnError::Missing(node.name.to_string(), "disk"))?;
                let mode = match vm_disk.mode {
                    DiskMode::Shared => "shared",
                    DiskMode::Mirror => "mirror",
                };
                start(
                    DeviceKind::Blk,
                    node,
                    &["--disk", &disk.to_string_lossy(), "--mode", mode],
                )?
            }
        });
    }
    Ok(processes)
}

fn foreign(kind: DeviceKind, sockets: &DeviceSockets) -> DeviceProcess {
    DeviceProcess {
        kind,
        sockets: sockets.clone(),
        child: None,
    }
}

fn start(kind: DeviceKind, node: &Node, arguments: &[&str]) -> Result<DeviceProcess, SpawnError> {
    let name = match kind {
        DeviceKind::Net => "net",
        DeviceKind::Blk => "blk",
    };
    let program = std::env::current_exe()
        .map_err(SpawnError::OwnPath)?
        .with_file_name(format!("vhost-{name}-ft"));
    let sockets = DeviceSockets {
        vhost: node.run_dir.join(format!("{name}.sock")),
        staging: node.run_dir.join(format!("{name}-staging.sock")),
    };
    remove_old(&sockets.vhost)?;
    remove_old(&sockets.staging)?;
    let child = Command::new(&program)
        .arg("--socket")
        .arg(&sockets.vhost)
        .arg("--staging")
        .arg(&sockets.staging)
        .arg("--once")
        .args(arguments)
        .spawn()
        .map_err(|error| SpawnError::Start(program, error))?;
    Ok(DeviceProcess {
        kind,
        sockets,
        child: Some(child),
    })
}

fn remove_old(socket: &Path) -> Result<(), SpawnError> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SpawnError::OldSocket(socket.into(), error))
        }
        _ => Ok(()),
    }
}
