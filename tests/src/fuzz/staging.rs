//! Whatever connects to the staging socket of a device process: it is set up, or sent away with a reason.

use std::os::fd::AsRawFd;
use std::sync::{Mutex, OnceLock, PoisonError};

use lockstep_staging::{DeviceFacts, DeviceKind, DeviceListener};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use tempfile::TempDir;

/// The longest packet that is sent: longer than any set-up.
const PACKET_MAX: usize = 8 << 10;

/// One listener for all, and the folder of its socket.
fn listener() -> &'static Mutex<(DeviceListener, TempDir)> {
    static LISTENER: OnceLock<Mutex<(DeviceListener, TempDir)>> = OnceLock::new();
    LISTENER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("there is room for a folder");
        let listener =
            DeviceListener::bind(&folder.path().join("staging")).expect("a new folder has no socket");
        Mutex::new((listener, folder))
    })
}

/// The first packet of a connection. It brings no memory and no doorbells, so whatever it says, it is refused.
pub(super) fn setup(bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let held = listener().lock().unwrap_or_else(PoisonError::into_inner);
    let (listener, folder) = &*held;
    let facts = DeviceFacts {
        kind: DeviceKind::Net,
        features: 0,
        config: vec![0; 12],
        is_mirrored: false,
        image: None,
        release: "fuzzed".into(),
    };
    let ours = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("there are descriptors left");
    let address = UnixAddr::new(&folder.path().join("staging")).expect("the path is short");
    connect(ours.as_raw_fd(), &address).expect("somebody listens");
    let packet = &bytes[..bytes.len().min(PACKET_MAX)];
    send(ours.as_raw_fd(), packet, MsgFlags::empty()).expect("a packet fits the socket");
    let outcome = listener.accept(DeviceKind::Net, |_| Ok(facts));
    assert!(outcome.is_err(), "a set-up without memory is refused");
    let mut answer = [0; PACKET_MAX];
    // A packet that is no request at all may be hung up on without an answer.
    let _ = recv(ours.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT);
}
