//! The staging side of a protected disk: who comes and goes, one VMM at a time, and its session.
//!
//! Owned by `backend.rs`, whose worker thread asks to look and to work. Its descriptors lie in an epoll set of their own, so a
//! session outlives a vhost-user connection. What the work is, is decided in `submit.rs`.

use std::error::Error;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use lockstep_staging::{
    DeviceEnd, DeviceFacts, DeviceKind, DeviceListener, ImageDigest, StageError, VmmFacts,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::disk::Disk;
use crate::image;
use crate::limits::PUMP_ROUNDS;
use crate::offer::{self, Service};
use crate::sink::{Memory, Ring};
use crate::submit::Submit;

/// Which descriptor of the staging side.
#[derive(Clone, Copy)]
enum StagingWake {
    Listener = 0,
    Socket = 1,
    Doorbell = 2,
}

/// The staging side.
#[derive(Debug)]
pub(crate) struct Staging {
    listener: DeviceListener,
    session: Option<Session>,
    epoll: Epoll,
}

/// One VMM. Dropping it drops every held request, never issued.
#[derive(Debug)]
struct Session {
    end: DeviceEnd,
    submit: Submit,
}

impl Staging {
    /// Nobody has connected yet.
    pub(crate) fn new(listener: DeviceListener) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        watch(&epoll, listener.as_raw_fd(), StagingWake::Listener)?;
        Ok(Self {
            listener,
            session: None,
            epoll,
        })
    }

    /// Something woke us: finds out what, and does all there is to do. `memory` is missing until the VMM has shared it.
    pub(crate) fn serve(&mut self, disk: &mut Disk, memory: Option<&Memory>, rings: &[Ring]) {
        self.look(disk);
        let Some(session) = &mut self.session else {
            return;
        };
        if let Err(reason) = session.run(disk, memory, rings) {
            tracing::error!(
                error = &reason as &dyn Error,
                "The VMM broke the staging rules and was disconnected"
            );
            self.end_session();
        }
    }

    /// Is somebody here whose guest this disk is for?
    pub(crate) fn has_vmm(&self) -> bool {
        self.session.is_some()
    }

    /// The memory came: orders that came before it wait for it.
    pub(crate) fn wake(&self) {
        if let Some(session) = &self.session {
            session.end.doorbell().ring();
        }
    }

    /// Finds out who came and who went.
    fn look(&mut self, disk: &Disk) {
        let mut events = [EpollEvent::default(); 4];
        // A set that cannot be waited for without waiting has no news.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        let mut came = false;
        for event in &events[..count] {
            match event.data() {
                data if data == StagingWake::Listener as u64 => came = true,
                data if data == StagingWake::Doorbell as u64 => self.hear_doorbell(),
                data if data == StagingWake::Socket as u64 => self.check_hang_up(),
                _ => {}
            }
        }
        if came {
            self.accept(disk);
        }
    }

    fn hear_doorbell(&self) {
        if let Some(session) = &self.session {
            session.end.doorbell().drain();
        }
    }

    fn check_hang_up(&mut self) {
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.end.is_hung_up())
        {
            tracing::info!("The VMM is gone");
            self.end_session();
        }
    }

    fn end_session(&mut self) {
        if let Some(Session { submit, end }) = self.session.take() {
            // The VMM has the same doorbell, so that closing ours alone would leave it watched and never drained.
            unwatch(&self.epoll, end.doorbell().as_raw_fd());
            unwatch(&self.epoll, end.socket().as_raw_fd());
            let (in_flight, held) = submit.counts();
            tracing::info!(
                in_flight,
                held,
                "The session is over; what was held is dropped and was not issued"
            );
        }
    }

    fn accept(&mut self, disk: &Disk) {
        self.check_hang_up();
        if self.session.is_some() {
            return self.listener.refuse("This disk has a VMM already");
        }
        match self.listener.accept(DeviceKind::Blk, |vmm| facts(disk, vmm)) {
            Ok(Some(end)) => {
                tracing::info!(release = end.vmm_release(), "A VMM has connected");
                self.begin_session(end);
            }
            Ok(None) => {}
            Err(reason) => {
                tracing::warn!(
                    error = &reason as &dyn Error,
                    "A connector did not become our VMM"
                );
            }
        }
    }

    fn begin_session(&mut self, end: DeviceEnd) {
        let watched = watch(&self.epoll, end.socket().as_raw_fd(), StagingWake::Socket)
            .and_then(|()| watch(&self.epoll, end.doorbell().as_raw_fd(), StagingWake::Doorbell));
        match watched {
            Ok(()) => {
                self.session = Some(Session {
                    end,
                    submit: Submit::default(),
                })
            }
            Err(reason) => tracing::error!(%reason, "The VMM cannot be watched and was disconnected"),
        }
    }
}

impl AsRawFd for Staging {
    /// Readable while there is something to serve.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl Session {
    /// Works until there is nothing to do, and says so to the VMM.
    fn run(&mut self, disk: &mut Disk, memory: Option<&Memory>, rings: &[Ring]) -> Result<(), StageError> {
        self.end.end_sleep();
        for _ in 0..PUMP_ROUNDS {
            self.submit.pump(&mut self.end, disk, memory, rings)?;
            if self.end.prepare_sleep(true) {
                return Ok(());
            }
        }
        // There is more, but hang-ups and set-up messages get their turn first.
        self.end.tell();
        self.end.doorbell().ring();
        Ok(())
    }
}

/// What a VMM is told of the disk, or why it cannot have it.
fn facts(disk: &Disk, vmm: &VmmFacts) -> Result<DeviceFacts, String> {
    let image = match vmm.compares_images && disk.is_mirrored() {
        false => None,
        true => Some(digest(disk).map_err(|error| format!("The disk image cannot be read: {error}"))?),
    };
    Ok(DeviceFacts {
        kind: DeviceKind::Blk,
        features: offer::features(disk, Service::Protected),
        config: offer::config(disk),
        is_mirrored: disk.is_mirrored(),
        image,
        release: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

fn digest(disk: &Disk) -> io::Result<ImageDigest> {
    tracing::info!("The image is read, to be compared with the other host's");
    let begin = Instant::now();
    let digest = image::digest(disk)?;
    tracing::info!(seconds = begin.elapsed().as_secs_f64(), "The image was read");
    Ok(digest)
}

fn watch(epoll: &Epoll, fd: RawFd, wake: StagingWake) -> io::Result<()> {
    epoll.ctl(
        ControlOperation::Add,
        fd,
        EpollEvent::new(EventSet::IN, wake as u64),
    )
}

/// One that was not watched is no matter.
fn unwatch(epoll: &Epoll, fd: RawFd) {
    let _ = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use lockstep_staging::VmmEnd;
    use tempfile::TempDir;

    use super::*;
    use crate::disk::{DiskOptions, Sharing};

    fn disk(folder: &TempDir) -> Disk {
        let path = folder.path().join("disk.img");
        std::fs::write(&path, [0; 512]).unwrap();
        let options = DiskOptions {
            path,
            read_only: false,
            sharing: Sharing::Shared,
            serial: String::new(),
        };
        Disk::open(&options).unwrap()
    }

    #[test]
    fn a_doorbell_that_a_vmm_rings_after_its_session_wakes_nobody() {
        let folder = TempDir::new().unwrap();
        let mut disk = disk(&folder);
        let path = folder.path().join("staging.sock");
        let mut staging = Staging::new(DeviceListener::bind(&path).unwrap()).unwrap();
        let facts = VmmFacts {
            kind: DeviceKind::Blk,
            compares_images: false,
            release: "test".to_owned(),
        };
        let vmm = std::thread::spawn(move || VmmEnd::connect(&path, &facts, Duration::from_secs(20)));
        assert_eq!(
            staging.epoll.wait(20_000, &mut [EpollEvent::default()]).unwrap(),
            1
        );
        staging.serve(&mut disk, None, &[]);
        let session = staging.session.as_ref().unwrap();
        // What the VMM has of it.
        let doorbell = session.end.doorbell().as_fd().try_clone_to_owned().unwrap();

        drop(vmm.join().unwrap().unwrap());
        staging.serve(&mut disk, None, &[]);
        assert!(!staging.has_vmm());
        rustix::io::write(&doorbell, &1_u64.to_ne_bytes()).unwrap();
        assert_eq!(staging.epoll.wait(0, &mut [EpollEvent::default()]).unwrap(), 0);
    }
}
