//! A device process that writes whatever it likes into the memory that it shares with its VMM, and a VMM that does the
//! same to it: both ends of staging after an honest set-up. Neither end panics, nor takes more than an entry may be.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use lockstep_protocol::ids::{Head, LogOffset, QueueIndex};
use lockstep_protocol::time::Instant;
use lockstep_staging::limits::{COMPLETION_BYTES_MAX, FRAME_BYTES_MAX};
use lockstep_staging::{DeviceEnd, DeviceFacts, DeviceKind, DeviceListener, Mode, Order, VmmEnd, VmmFacts};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    accept4, bind, connect, listen, recvmsg, sendmsg, socket,
};
use nix::unistd::close;
use tempfile::TempDir;

/// The longest packet of a set-up.
const PACKET_MAX: usize = 8 << 10;
/// Bytes of one step: what, where (in words of 8 bytes), and a value.
const STEP: usize = 8;
/// So many steps are made at most.
const STEPS_MAX: usize = 512;
/// Longer than any set-up takes.
const PATIENCE: Duration = Duration::from_secs(4);

/// What the device's side of a set-up gives: its end, and the shared memory as a file.
type Device = (DeviceEnd, File);

/// Set-ups, one after the other: a VMM's end connects to the path, the device's comes out here.
struct Workshop {
    path: PathBuf,
    devices: Receiver<Device>,
    _folder: TempDir,
}

fn workshop() -> &'static Mutex<Workshop> {
    static WORKSHOP: OnceLock<Mutex<Workshop>> = OnceLock::new();
    WORKSHOP.get_or_init(|| {
        let folder = tempfile::tempdir().expect("there is room for a folder");
        let [path, behind] = ["front", "behind"].map(|name| folder.path().join(name));
        let listener = DeviceListener::bind(&behind).expect("a new folder has no socket");
        let door = seqpacket();
        bind(door.as_raw_fd(), &address(&path)).expect("a new folder has no socket");
        listen(&door, Backlog::MAXCONN).expect("a socket that is bound can listen");
        let (give, devices) = sync_channel(1);
        thread::spawn(move || {
            loop {
                let device = serve(door.as_raw_fd(), &behind, &listener);
                if give.send(device).is_err() {
                    return;
                }
            }
        });
        Mutex::new(Workshop {
            path,
            devices,
            _folder: folder,
        })
    })
}

/// Passes one set-up on to a real device's end, and keeps a look at the memory that came with it.
fn serve(door: RawFd, behind: &Path, listener: &DeviceListener) -> Device {
    let vmm = again(|| accept4(door, SockFlag::SOCK_CLOEXEC)).expect("somebody connects in time");
    let through = seqpacket();
    again(|| connect(through.as_raw_fd(), &address(behind))).expect("the device's end listens");
    let (request, descriptors) = receive(vmm);
    let path = format!(
        "/proc/self/fd/{}",
        descriptors.first().expect("memory comes along")
    );
    let memory = OpenOptions::new().read(true).write(true).open(path);
    let memory = memory.expect("memory that was sent can be opened");
    send(through.as_raw_fd(), &request, &descriptors);
    descriptors.into_iter().for_each(|descriptor| {
        close(descriptor).expect("what was received is open");
    });
    let end = listener.accept(DeviceKind::Blk, |_| Ok(facts()));
    let end = end.expect("an honest set-up is accepted").expect("it waits");
    let (answer, _) = receive(through.as_raw_fd());
    send(vmm, &answer, &[]);
    close(vmm).expect("it was open");
    (end, memory)
}

fn facts() -> DeviceFacts {
    DeviceFacts {
        kind: DeviceKind::Blk,
        features: 0,
        config: vec![0; 24],
        is_mirrored: false,
        image: None,
        release: "fuzzed".into(),
    }
}

fn seqpacket() -> std::os::fd::OwnedFd {
    socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("there are descriptors left")
}

fn address(path: &Path) -> UnixAddr {
    UnixAddr::new(path).expect("the path is short")
}

/// libFuzzer's clock interrupts whatever waits.
fn again<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            outcome => return outcome,
        }
    }
}

fn receive(from: RawFd) -> (Vec<u8>, Vec<RawFd>) {
    let mut packet = vec![0; PACKET_MAX];
    let (length, descriptors) = again(|| {
        let mut space = nix::cmsg_space!([RawFd; 3]);
        let mut slices = [IoSliceMut::new(&mut packet)];
        let message = recvmsg::<()>(from, &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let rights = message.cmsgs()?.filter_map(|control| match control {
            ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        Ok((message.bytes, rights.flatten().collect()))
    })
    .expect("the other side is there");
    packet.truncate(length);
    (packet, descriptors)
}

fn send(to: RawFd, packet: &[u8], descriptors: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights };
    again(|| sendmsg::<()>(to, &[IoSlice::new(packet)], control, MsgFlags::empty(), None))
        .expect("a packet fits the socket");
}

/// Two ends that were set up in good order, and then lie to each other.
pub(super) fn staging(bytes: &[u8]) {
    if bytes.len() < STEP {
        return;
    }
    let (mut vmm, (mut device, memory)) = {
        let workshop = workshop().lock().unwrap_or_else(PoisonError::into_inner);
        let wants = VmmFacts {
            kind: DeviceKind::Blk,
            compares_images: false,
            release: "fuzzed".into(),
        };
        let (vmm, _) =
            VmmEnd::connect(&workshop.path, &wants, PATIENCE).expect("an honest set-up is accepted");
        let device = workshop.devices.recv_timeout(PATIENCE).expect("it was accepted");
        (vmm, device)
    };
    let length = memory.metadata().expect("it is open").len();
    for step in bytes.chunks_exact(STEP).take(STEPS_MAX) {
        let &[what, a, b, c, v, w, x, y] = step else {
            return;
        };
        let place = u64::from(u32::from_le_bytes([a, b, c, 0])) * 8 % length;
        let value = u32::from_le_bytes([v, w, x, y]);
        let goes_on = match what % 12 {
            0..4 => lie(&memory, place, what, value),
            4..8 => vmm_does(&mut vmm, what % 4, place, value),
            _ => device_does(&mut device, what % 4, place, value),
        };
        if !goes_on {
            return;
        }
    }
}

/// Writes a word: a number, an index far away, or the header of an entry.
fn lie(memory: &File, place: u64, what: u8, value: u32) -> bool {
    let word = match what % 4 {
        0 => u64::from(value),
        1 => i64::from(value.cast_signed()).cast_unsigned(),
        2 => u64::from(value & 0xff_ffff) | u64::from(value >> 24) << 32,
        _ => u64::from(value) << 32,
    };
    memory
        .write_all_at(&word.to_le_bytes(), place)
        .expect("it lies within the memory");
    true
}

/// False when the VMM would close the session.
fn vmm_does(vmm: &mut VmmEnd, what: u8, place: u64, value: u32) -> bool {
    let mut bytes = Vec::new();
    let offset = LogOffset::new(place);
    match what {
        0 => {
            let popped = vmm.pop_completion(&mut bytes).is_ok();
            assert!(bytes.len() <= COMPLETION_BYTES_MAX, "a completion fits a record");
            popped
        }
        1 => {
            let popped = vmm.pop_frame(&mut bytes).is_ok();
            assert!(
                bytes.len() <= FRAME_BYTES_MAX,
                "a frame is no longer than frames are"
            );
            popped
        }
        2 => {
            let order = Order {
                queue: QueueIndex::new(0),
                head: Head::new(value as u16),
                needs: offset,
            };
            let pushed = (0..=value >> 20).all(|_| vmm.push_order(order).is_ok());
            vmm.defer_orders(offset, 1);
            pushed
        }
        _ => {
            if vmm.prepare_sleep() {
                vmm.wake_up();
            }
            let gate = vmm.gate();
            gate.publish_acked(offset);
            gate.publish_lease(Instant::from_nanos(u64::from(value) << 32));
            gate.set_mode(if value & 1 == 0 { Mode::Live } else { Mode::Halted });
            gate.snapshot();
            true
        }
    }
}

/// False when the device process would close the session.
fn device_does(device: &mut DeviceEnd, what: u8, place: u64, value: u32) -> bool {
    let length = value as usize & 0x1f_ffff;
    match what {
        0 => device
            .stage_completion(QueueIndex::new(0), Head::new(place as u16), length, |_| Ok(()))
            .is_ok(),
        1 => device.stage_frame(length, |room| Ok(room.len())).is_ok(),
        2 => {
            let returned = device.stage_returned(QueueIndex::new(0), value as u16);
            returned.is_ok() && device.pop_order().is_ok()
        }
        _ => {
            device.publish_waiting(Some(LogOffset::new(place)), 1);
            device.gate();
            device.mode();
            if device.prepare_sleep(value & 1 == 0) {
                device.wake_up();
            }
            true
        }
    }
}
