//! A disk, the real process that serves it, and a guest made of bare descriptors.
//!
//! Used by the tests beside it. The guest is as simple as a driver can be: it says where everything lies by hand.
#![allow(dead_code, reason = "each test file uses its own part of the world")]

pub(crate) mod vmm;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use tempfile::TempDir;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// What the process wrote to stderr, in its folder.
const LOG: &str = "log";
pub(crate) const SECTORS: u64 = 2048;
pub(crate) const QUEUE_SIZE: u16 = 64;

pub(crate) const MEMORY: usize = 16 << 20;
const TABLE: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADERS: u64 = 0x4000;
const STATUSES: u64 = 0x6000;
/// Each head has a megabyte and a bit of its own from here on.
const BUFFERS: u64 = 0x10_0000;
const BUFFER: u64 = 0x11_0000;
/// How many heads there are.
pub(crate) const HEADS: u16 = 12;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;

/// The process under test and its folder.
pub(crate) struct Device {
    pub(crate) folder: TempDir,
    child: Child,
}

impl Device {
    /// A process with a disk of [`SECTORS`] sectors, each filled with its own number's low byte.
    pub(crate) fn start(protected: bool, more: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let content: Vec<u8> = (0..SECTORS).flat_map(|sector| [sector as u8; 512]).collect();
        std::fs::write(folder.path().join("disk.img"), content).unwrap();
        Self::start_in(folder, protected, more)
    }

    pub(crate) fn start_in(folder: TempDir, protected: bool, more: &[&str]) -> Self {
        let mut command = command(folder.path(), protected);
        command.args(more);
        Self::spawn(folder, command)
    }

    /// A process with a disk of 4 MiB on a file system that has room for one, in a mount namespace of its own.
    pub(crate) fn start_on_a_small_file_system(protected: bool, more: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let small = folder.path().join("small");
        std::fs::create_dir(&small).unwrap();
        let ours = command_with(folder.path(), &small.join("disk.img"), protected);
        let mut command = Command::new("unshare");
        let script =
            "mount -t tmpfs -o size=1m small \"$0\" && truncate -s 4M \"$0/disk.img\" && exec \"$@\"";
        command
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
            .arg(&small)
            .arg(ours.get_program())
            .args(ours.get_args())
            .args(more)
            .env("RUST_LOG", "error");
        Self::spawn(folder, command)
    }

    fn spawn(folder: TempDir, mut command: Command) -> Self {
        let log = File::create(folder.path().join(LOG)).unwrap();
        let child = command.stderr(log).spawn().unwrap();
        Self { folder, child }
    }

    /// The lines of its log that have these words.
    pub(crate) fn said(&self, words: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.path(LOG)).unwrap();
        let lines = log.lines().filter(|line| line.contains(words));
        lines.map(str::to_owned).collect()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The disk's bytes as any other process sees them.
    pub(crate) fn on_disk(&self, sector: u64, bytes: usize) -> Vec<u8> {
        let mut content = vec![0; bytes];
        File::open(self.path("disk.img"))
            .unwrap()
            .read_exact_at(&mut content, sector * 512)
            .unwrap();
        content
    }

    pub(crate) fn front_end(&self) -> Frontend {
        connect(&self.path("blk.sock"))
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    pub(crate) fn wait_for_exit(&mut self) -> std::process::ExitStatus {
        eventually("the process to exit", || self.child.try_wait().unwrap())
    }

    /// Whether it has the thread that serves a front-end; then it needs nothing more to take one in.
    pub(crate) fn has_a_worker(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        threads
            .filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).ok())
            .any(|name| name.starts_with("vring_worker"))
    }

    /// From now on it gets no descriptor more.
    pub(crate) fn take_its_descriptors(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32);
        let none = rustix::process::Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        rustix::process::prlimit(pid, rustix::process::Resource::Nofile, none).unwrap();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn open_descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .unwrap()
            .count()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Shown when the test fails.
        eprint!("{}", std::fs::read_to_string(self.path(LOG)).unwrap());
    }
}

pub(crate) fn command(folder: &Path, protected: bool) -> Command {
    command_with(folder, &folder.join("disk.img"), protected)
}

fn command_with(folder: &Path, disk: &Path, protected: bool) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-blk-ft"));
    command.env("RUST_LOG", "warn");
    command.arg("--socket").arg(folder.join("blk.sock"));
    command.arg("--disk").arg(disk);
    if protected {
        command.arg("--staging").arg(folder.join("staging.sock"));
    }
    command
}

/// What a process that cannot begin says.
pub(crate) fn complaint(mut command: Command) -> String {
    let mut child = command
        .stderr(Stdio::piped())
        .env("RUST_LOG", "off")
        .spawn()
        .unwrap();
    let status = eventually("the process to exit", || child.try_wait().unwrap());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!status.success());
    said
}

pub(crate) fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    line
}

/// Waits for a condition, never longer than [`PATIENCE`].
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn connect(path: &Path) -> Frontend {
    eventually("the vhost-user socket", || Frontend::connect(path, 8).ok())
}

/// Guest memory with one queue in it.
pub(crate) struct Guest {
    pub(crate) memory: GuestMemoryMmap,
    /// Where the available ring lies.
    pub(crate) available: GuestAddress,
    offered: u16,
    used: u16,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, MEMORY as u64).unwrap();
        let part = (
            GuestAddress(0),
            MEMORY,
            Some(FileOffset::new(File::from(file), 0)),
        );
        Self {
            memory: GuestMemoryMmap::from_ranges_with_files([part]).unwrap(),
            available: GuestAddress(AVAIL),
            offered: 0,
            used: 0,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    /// Tells the device of the memory and the queue; `notified`: with kick and call, as a plain front-end does.
    pub(crate) fn attach(&self, front_end: &mut Frontend, notified: bool) {
        front_end.set_owner().unwrap();
        let offered = front_end.get_features().unwrap();
        let protocol = front_end.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ));
        front_end.set_protocol_features(protocol).unwrap();
        front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let wanted = 1 << 32 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert_eq!(offered & wanted, wanted);
        front_end.set_features(wanted).unwrap();
        let region = self.memory.iter().next().unwrap();
        front_end
            .set_mem_table(&[VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()])
            .unwrap();
        assert_eq!(region.len(), MEMORY as u64);
        self.set_up_queue(front_end, notified);
    }

    /// The part of it that a driver that starts over makes its front-end do again.
    pub(crate) fn set_up_queue(&self, front_end: &mut Frontend, notified: bool) {
        front_end.set_vring_num(0, QUEUE_SIZE).unwrap();
        let region = self.memory.iter().next().unwrap();
        let base = region.as_ptr() as u64;
        let config = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: base + TABLE,
            used_ring_addr: base + USED,
            avail_ring_addr: base + self.available.0,
            log_addr: None,
        };
        front_end.set_vring_addr(0, &config).unwrap();
        front_end.set_vring_base(0, self.offered).unwrap();
        if notified {
            front_end.set_vring_call(0, &self.call).unwrap();
            front_end.set_vring_kick(0, &self.kick).unwrap();
            front_end.set_vring_enable(0, true).unwrap();
        }
    }

    /// Where the data of this head lies.
    pub(crate) fn buffer(head: u16) -> GuestAddress {
        assert!(head < HEADS, "so many heads have buffers");
        GuestAddress(BUFFERS + u64::from(head) * BUFFER)
    }

    /// Writes a request whose descriptors are `3 * head` and the two after it; says its head.
    pub(crate) fn request(&self, head: u16, kind: u32, sector: u64, said: &[u8], room: u32) -> u16 {
        let header = GuestAddress(HEADERS + u64::from(head) * 16);
        self.memory.write_obj(kind, header).unwrap();
        self.memory.write_obj(0_u32, header.unchecked_add(4)).unwrap();
        self.memory.write_obj(sector, header.unchecked_add(8)).unwrap();
        self.memory.write_slice(said, Self::buffer(head)).unwrap();
        self.memory.write_obj(0xee_u8, Self::status_place(head)).unwrap();
        let (length, flags) = if room > 0 {
            (room, WRITE)
        } else {
            (said.len() as u32, 0)
        };
        let first = head * 3;
        let data = [(header.0, 16, NEXT), (Self::buffer(head).0, length, flags | NEXT)];
        let status = (Self::status_place(head).0, 1, WRITE);
        for (index, (address, length, flags)) in data.into_iter().chain([status]).enumerate() {
            let index = first + index as u16;
            let place = GuestAddress(TABLE + u64::from(index) * 16);
            self.memory
                .write_obj(Descriptor::new(address, length, flags, index + 1), place)
                .unwrap();
        }
        first
    }

    fn status_place(head: u16) -> GuestAddress {
        GuestAddress(STATUSES + u64::from(head))
    }

    pub(crate) fn status(&self, head: u16) -> u8 {
        self.memory.read_obj(Self::status_place(head)).unwrap()
    }

    pub(crate) fn data(&self, head: u16, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.memory.read_slice(&mut data, Self::buffer(head)).unwrap();
        data
    }

    /// Puts a chain into the avail ring and kicks.
    pub(crate) fn offer(&mut self, first: u16) {
        let place = GuestAddress(AVAIL + 4 + u64::from(self.offered % QUEUE_SIZE) * 2);
        self.memory.write_obj(first, place).unwrap();
        self.offered += 1;
        self.memory
            .store(
                self.offered,
                GuestAddress(AVAIL + 2),
                std::sync::atomic::Ordering::SeqCst,
            )
            .unwrap();
        self.kick.write(1).unwrap();
    }

    /// Says that so many chains were ever offered, whatever it is, and kicks; returns when the device has heard the kick.
    pub(crate) fn claim_offered(&self, count: u16) {
        self.memory
            .write_obj(count, self.available.unchecked_add(2))
            .unwrap();
        self.kick.write(1).unwrap();
        let rings = Epoll::new().unwrap();
        let watched = EpollEvent::new(EventSet::IN, 0);
        rings
            .ctl(ControlOperation::Add, self.kick.as_raw_fd(), watched)
            .unwrap();
        eventually("the kick to be heard", || {
            (rings.wait(0, &mut [EpollEvent::default()]).unwrap() == 0).then_some(())
        });
    }

    /// The next used entry: which chain, and how many bytes were written.
    pub(crate) fn next_used(&mut self) -> (u32, u32) {
        eventually("a used entry", || (self.used_index() != self.used).then_some(()));
        let place = GuestAddress(USED + 4 + u64::from(self.used % QUEUE_SIZE) * 8);
        self.used += 1;
        (
            self.memory.read_obj(place).unwrap(),
            self.memory.read_obj(place.unchecked_add(4)).unwrap(),
        )
    }

    pub(crate) fn used_index(&self) -> u16 {
        self.memory
            .load(GuestAddress(USED + 2), std::sync::atomic::Ordering::SeqCst)
            .unwrap()
    }

    /// Everything in guest memory.
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        let mut all = vec![0; MEMORY];
        self.memory.read_slice(&mut all, GuestAddress(0)).unwrap();
        all
    }

    /// One request of a plain front-end, from offer to status.
    pub(crate) fn ask(&mut self, kind: u32, sector: u64, said: &[u8], room: u32) -> (u8, u32) {
        let first = self.request(0, kind, sector, said, room);
        self.offer(first);
        let (id, length) = self.next_used();
        assert_eq!(id, u32::from(first));
        (self.status(0), length)
    }
}

use vm_memory::Address;

/// The configuration space as a front-end reads it.
pub(crate) fn config(front_end: &mut Frontend, bytes: u32) -> Vec<u8> {
    let room = vec![0; bytes as usize];
    front_end
        .get_config(0, bytes, VhostUserConfigFlags::empty(), &room)
        .unwrap()
        .1
}
