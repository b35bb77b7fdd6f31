//! A network namespace of the test's own, and the kernel in it as the outside.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, bind, recv, send, socket};

use crate::process::{Process, until};

const INSIDE: &str = "LOCKSTEP_TEST_INSIDE_NETNS";
/// The outside's address; the guest is 10.77.0.2.
pub(crate) const OUTSIDE_IP: [u8; 4] = [10, 77, 0, 1];
pub(crate) const PORT: u16 = 7700;

/// Runs `test` in a network namespace of its own, by running this test again in there.
pub(crate) fn inside(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let possible = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "true"])
        .output();
    assert!(
        possible.as_ref().is_ok_and(|output| output.status.success()),
        "{name} needs a network namespace: be root, or let users make namespaces ({possible:?})"
    );
    assert!(
        std::path::Path::new("/dev/net/tun").exists(),
        "{name} needs /dev/net/tun: `modprobe tun`"
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let passed = output.status.success() && said(&output.stdout).contains("1 passed");
    assert!(passed, "{}\n{}", said(&output.stdout), said(&output.stderr));
}

/// The kernel's end of the tap, with an address.
pub(crate) struct Outside {
    socket: UdpSocket,
}

impl Outside {
    /// Brings the tap up and listens on it.
    pub(crate) fn on(process: &Process) -> Self {
        // Unasked frames of the kernel would be noise.
        let quiet = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", process.tap);
        let _ = std::fs::write(quiet, "1");
        configure(&process.tap);
        let socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { socket }
    }

    /// The next payload that comes.
    pub(crate) fn hear(&self) -> Vec<u8> {
        let mut bytes = [0; 2048];
        let length = self.socket.recv(&mut bytes).expect("something comes in time");
        bytes[..length].to_vec()
    }

    /// Whether nothing has come. What the device writes is in the socket before the write returns, so a test asks this
    /// after it saw the device do its work.
    pub(crate) fn is_silent(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let nothing = self.socket.recv(&mut [0; 2048]).is_err();
        self.socket.set_nonblocking(false).unwrap();
        nothing
    }

    /// Broadcasts a payload to the guest's network; that needs no ARP.
    pub(crate) fn say(&self, payload: &[u8]) {
        self.socket.send_to(payload, ("10.77.0.255", PORT + 1)).unwrap();
    }
}

/// How many frames the device has written to the tap; to the kernel they are received ones.
pub(crate) fn frames_sent(tap: &str) -> u64 {
    statistic(tap, 1)
}

/// Whether the device has read all that the kernel sent: a tap counts a frame as transmitted when it is read.
pub(crate) fn tap_queue_is_empty(tap: &str) -> bool {
    statistic(tap, 9) >= 1
}

pub(crate) fn exists(tap: &str) -> bool {
    std::fs::read_to_string("/proc/self/net/dev")
        .unwrap()
        .contains(tap)
}

/// Takes the tap away, as `ip link del` does.
pub(crate) fn remove(tap: &str) {
    const RTM_DELLINK: u16 = 17;
    let mut link = vec![0; 4];
    for word in [interface_index(tap), 0, 0] {
        link.extend_from_slice(&word.to_ne_bytes());
    }
    ask_kernel(RTM_DELLINK, &link);
}

/// A column of /proc/net/dev.
fn statistic(tap: &str, column: usize) -> u64 {
    let table = std::fs::read_to_string("/proc/self/net/dev").unwrap();
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("{tap}:")))
        .unwrap();
    line.split_whitespace().nth(column).unwrap().parse().unwrap()
}

/// Up, with address 10.77.0.1/24 and broadcast 10.77.0.255: what `ip addr add` and `ip link set up` do.
fn configure(tap: &str) {
    const RTM_NEWLINK: u16 = 16;
    const RTM_NEWADDR: u16 = 20;
    const IFF_UP: u32 = 1;
    let index = interface_index(tap);
    let mut link = vec![0, 0, 0, 0];
    for word in [index, IFF_UP, IFF_UP] {
        link.extend_from_slice(&word.to_ne_bytes());
    }
    ask_kernel(RTM_NEWLINK, &link);
    let mut address = vec![2, 24, 0, 0];
    address.extend_from_slice(&index.to_ne_bytes());
    // IFA_LOCAL, IFA_ADDRESS, IFA_BROADCAST: length 8, type, four bytes.
    for (kind, ip) in [(2_u16, OUTSIDE_IP), (1, OUTSIDE_IP), (4, [10, 77, 0, 255])] {
        address.extend_from_slice(&8_u16.to_ne_bytes());
        address.extend_from_slice(&kind.to_ne_bytes());
        address.extend_from_slice(&ip);
    }
    ask_kernel(RTM_NEWADDR, &address);
}

fn interface_index(tap: &str) -> u32 {
    until("the tap's index", || nix::net::if_::if_nametoindex(tap).ok())
}

/// One request to rtnetlink, acknowledged.
fn ask_kernel(kind: u16, body: &[u8]) {
    // Request, acknowledge, create, exclusive.
    const FLAGS: u16 = 1 | 4 | 0x400 | 0x200;
    let flags = if kind < 20 { 1 | 4 } else { FLAGS };
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap();
    bind(&socket, &SocketAddrNetlink::new(0, 0)).unwrap();
    let mut message = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    send(&socket, &message, SendFlags::empty()).unwrap();
    let mut answer = [0; 4096];
    recv(&socket, &mut answer[..], RecvFlags::empty()).unwrap();
    let error = i32::from_ne_bytes(answer[16..20].try_into().unwrap());
    assert!(
        error == 0 || error == -17,
        "rtnetlink refused message {kind}: {error}"
    );
}
