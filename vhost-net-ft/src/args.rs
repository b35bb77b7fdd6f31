//! What the command line says.

use std::path::PathBuf;

use clap::Parser;

use crate::frame::Mac;

const AFTER: &str = "\
Under an ordinary front-end (QEMU: -chardev socket,path=S.sock ... -netdev vhost-user) this is an ordinary vhost-user \
network back-end. When a Lockstep VMM connects to the staging socket first, the guest is protected: received frames are \
staged for the VMM's log, transmitted frames are held until the backup has acked what caused them.

The tap has to exist and be up (`ip tuntap add NAME mode tap user $USER && ip link set NAME up`); with CAP_NET_ADMIN a \
missing one is made, and is gone again when this process ends. Logs go to stderr; RUST_LOG sets what is said.";

/// A vhost-user network device over a tap, for ordinary and for fault-tolerant VMs
#[derive(Debug, Parser)]
#[command(name = "vhost-net-ft", version, after_long_help = AFTER, after_help = "More with --help")]
pub struct Args {
    /// Where to listen for the vhost-user front-end
    #[arg(long, value_name = "S.sock")]
    pub socket: PathBuf,

    /// Where to listen for the VMM of a protected guest; without it guests cannot be protected
    #[arg(long, value_name = "P.sock")]
    pub staging: Option<PathBuf>,

    /// The tap interface
    #[arg(long, value_name = "NAME")]
    pub tap: String,

    /// The guest's Ethernet address: offered to the guest, and announced when its host goes live
    #[arg(long, value_name = "ADDRESS")]
    pub mac: Option<Mac>,

    /// Exit when the first front-end disconnects, instead of waiting for the next
    #[arg(long)]
    pub once: bool,
}
