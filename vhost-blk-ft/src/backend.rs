//! vhost-user and staging glue: features, memory, wake-ups. No logic: what a wake-up does is done in `submit.rs` and
//! `plain.rs`.
//!
//! Called by the vhost-user daemon: set-up messages on its connection's thread, wake-ups on its worker thread. The
//! staging side's descriptors live in an epoll set of their own, which is put into each new daemon's: so a staging
//! session outlives a vhost-user connection and needs none to begin.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use lockstep_staging::{DeviceEnd, DeviceFacts, DeviceKind, DeviceListener, Fault, StageError};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use std::os::fd::{AsFd, OwnedFd};
use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackendMut;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::complete::Failures;
use crate::disk::Disk;
use crate::limits::{QUEUE_SIZE_MAX, QUEUES};
use crate::offer::{self, Service};
use crate::plain;
use crate::sink::{AtomicMemory, Ring};
use crate::submit::Submit;
