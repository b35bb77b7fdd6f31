//! Both ends over a real socket: set-up, refusals, bytes both ways, the gate, sleeping, hang-up.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use lockstep_protocol::ids::{Head, LogOffset, QueueIndex};
use lockstep_protocol::outbox::Gate;
use lockstep_protocol::time::Instant;
use lockstep_staging::limits::{COMPLETION_BYTES_MAX, DEFERRED_MAX, FRAME_BYTES_MAX, UNTOLD_MAX};
use lockstep_staging::{
    AcceptError, BindError, ConnectError, DeviceEnd, DeviceFacts, DeviceKind, DeviceListener, Doorbell, Mode,
    Order, StageError, Staged, VmmEnd, VmmFacts,
};
use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::Bytes;

const TIMEOUT: Duration = Duration::from_secs(10);

struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("staging.sock");
    Place { _dir: dir, path }
}

fn device_facts(kind: DeviceKind) -> DeviceFacts {
    DeviceFacts {
        kind,
        features: 1 << 32,
        config: vec![2, 0, 0, 0, 0, 1],
        is_mirrored: false,
        image: None,
        release: "device 1".into(),
    }
}

fn vmm_facts(kind: DeviceKind) -> VmmFacts {
    VmmFacts {
        kind,
        compares_images: false,
        release: "vmm 1".into(),
    }
}

fn wait_readable(fd: impl AsFd) {
    let timeout = rustix::event::Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    assert_eq!(
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap(),
        1,
        "nothing came in time"
    );
}

fn is_silent(doorbell: &Doorbell) -> bool {
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(doorbell, PollFlags::IN)], Some(&now)).unwrap() == 0
}

/// Accepts the next connector, however long it takes to come.
fn accept(listener: &DeviceListener, facts: &DeviceFacts) -> Result<DeviceEnd, AcceptError> {
    wait_readable(listener);
    listener
        .accept(facts.kind, |_| Ok(facts.clone()))
        .map(|end| end.expect("the listener was readable"))
}

fn pair(kind: DeviceKind) -> (VmmEnd, DeviceEnd, DeviceFacts) {
    let place = place();
    let listener = DeviceListener::bind(&place.path).unwrap();
    let path = place.path.clone();
    let vmm = std::thread::spawn(move || VmmEnd::connect(&path, &vmm_facts(kind), TIMEOUT));
    let device = accept(&listener, &device_facts(kind)).unwrap();
    let (vmm, facts) = vmm.join().unwrap().unwrap();
    (vmm, device, facts)
}

#[test]
fn the_ends_meet_and_know_of_each_other() {
    let (_vmm, device, facts) = pair(DeviceKind::Net);
    assert_eq!(facts, device_facts(DeviceKind::Net));
    assert_eq!(device.vmm_release(), "vmm 1");
}

#[test]
fn a_vmm_that_wants_another_device_is_told_so() {
    let place = place();
    let listener = DeviceListener::bind(&place.path).unwrap();
    let path = place.path.clone();
    let vmm = std::thread::spawn(move || VmmEnd::connect(&path, &vmm_facts(DeviceKind::Blk), TIMEOUT));
    assert!(matches!(
        accept(&listener, &device_facts(DeviceKind::Net)),
        Err(AcceptError::Refused(_))
    ));
    let error = vmm.join().unwrap().unwrap_err();
    assert!(matches!(&error, ConnectError::Refused { .. }));
    assert!(
        error
            .to_string()
            .contains("wants a disk, this is a network device"),
        "{error}"
    );
}

#[test]
fn a_second_vmm_is_told_that_the_device_is_taken() {
    let place = place();
    let listener = DeviceListener::bind(&place.path).unwrap();
    let path = place.path.clone();
    let vmm = std::thread::spawn(move || VmmEnd::connect(&path, &vmm_facts(DeviceKind::Net), TIMEOUT));
    wait_readable(&listener);
    listener.refuse("Another VMM uses this device");
    let error = vmm.join().unwrap().unwrap_err().to_string();
    assert!(error.ends_with("Another VMM uses this device"), "{error}");
}

#[test]
fn a_stranger_is_sent_away_and_the_listener_goes_on() {
    let place = place();
    let listener = DeviceListener::bind(&place.path).unwrap();
    let stranger = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        None,
    );
    let stranger = stranger.unwrap();
    rustix::net::connect(&stranger, &rustix::net::SocketAddrUnix::new(&place.path).unwrap()).unwrap();
    rustix::net::send(
        &stranger,
        b"GET / HTTP/1.0\r\n\r\n",
        rustix::net::SendFlags::empty(),
    )
    .unwrap();
    assert!(matches!(
        accept(&listener, &device_facts(DeviceKind::Net)),
        Err(AcceptError::Refused(_))
    ));

    let path = place.path.clone();
    let vmm = std::thread::spawn(move || VmmEnd::connect(&path, &vmm_facts(DeviceKind::Net), TIMEOUT));
    accept(&listener, &device_facts(DeviceKind::Net)).unwrap();
    vmm.join().unwrap().unwrap();
}

#[test]
fn a_socket_in_use_is_not_taken_but_a_dead_one_is_replaced() {
    let place = place();
    let first = DeviceListener::bind(&place.path).unwrap();
    assert!(matches!(
        DeviceListener::bind(&place.path),
        Err(BindError::InUse(_))
    ));
    drop(first);
    drop(std::os::unix::net::UnixListener::bind(&place.path).unwrap());
    DeviceListener::bind(&place.path).unwrap();
}

#[test]
fn nobody_listening_is_said_with_the_path() {
    let place = place();
    let error = VmmEnd::connect(
        &place.path,
        &vmm_facts(DeviceKind::Net),
        Duration::from_millis(20),
    )
    .unwrap_err();
    assert!(matches!(error, ConnectError::NobodyListens { .. }));
    assert!(error.to_string().contains("staging.sock"));
}

#[test]
fn frames_completions_and_orders_arrive_as_they_were_sent() {
    let (mut vmm, mut device, _) = pair(DeviceKind::Net);
    let mut bytes = Vec::new();
    assert!(!vmm.has_inputs());
    let length = device
        .stage_frame(FRAME_BYTES_MAX, |room| {
            room.write_slice(b"a frame", 0).map_err(io::Error::other)?;
            Ok(7)
        })
        .unwrap();
    assert_eq!(length, 7);
    assert!(vmm.has_inputs());
    assert_eq!(vmm.pop_frame(&mut bytes).unwrap(), Some(7));
    assert_eq!(bytes, b"a frame");
    assert_eq!(vmm.pop_frame(&mut bytes).unwrap(), None);

    let (queue, head) = (QueueIndex::new(1), Head::new(300));
    device
        .stage_completion_bytes(queue, head, &[b"sector", &[0]])
        .unwrap();
    device.stage_returned(queue, 17).unwrap();
    assert_eq!(
        vmm.pop_completion(&mut bytes).unwrap(),
        Some(Staged::Completion { queue, head })
    );
    assert_eq!(bytes, b"sector\0");
    assert_eq!(
        vmm.pop_completion(&mut bytes).unwrap(),
        Some(Staged::Returned { queue, count: 17 })
    );

    let order = Order {
        queue,
        head,
        needs: LogOffset::new(1 << 40),
    };
    vmm.push_order(order).unwrap();
    assert_eq!(device.pop_order().unwrap(), Some(order));
    assert_eq!(device.pop_order().unwrap(), None);
}

#[test]
fn an_outside_that_has_nothing_to_read_stages_nothing() {
    let (mut vmm, mut device, _) = pair(DeviceKind::Net);
    let nothing = device.stage_frame(2048, |_| Err(io::ErrorKind::WouldBlock.into()));
    assert!(matches!(nothing, Err(StageError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock));
    assert_eq!(vmm.pop_frame(&mut Vec::new()).unwrap(), None);
}

#[test]
fn the_largest_completion_fits_and_one_more_byte_does_not() {
    let (mut vmm, mut device, _) = pair(DeviceKind::Blk);
    let (queue, head) = (QueueIndex::new(0), Head::new(0));
    let largest = vec![5; COMPLETION_BYTES_MAX];
    device.stage_completion_bytes(queue, head, &[&largest]).unwrap();
    let mut bytes = Vec::new();
    vmm.pop_completion(&mut bytes).unwrap();
    assert_eq!(bytes, largest);
    let too_long = device.stage_completion_bytes(queue, head, &[&largest, &[1]]);
    assert!(matches!(too_long, Err(StageError::TooLong)));
}

#[test]
fn a_fresh_gate_is_shut_and_only_a_live_one_opens() {
    let (vmm, mut device, _) = pair(DeviceKind::Net);
    assert_eq!((device.gate(), device.mode()), (Gate::SHUT, Mode::Quiet));
    let writer = vmm.gate();
    writer.publish_acked(LogOffset::new(9));
    writer.publish_lease(Instant::from_nanos(77));
    assert_eq!(device.gate().lease_until, Instant::ZERO);
    writer.set_mode(Mode::Live);
    assert_eq!(
        device.gate(),
        Gate {
            acked: LogOffset::new(9),
            lease_until: Instant::from_nanos(77)
        }
    );
    writer.publish_acked(LogOffset::new(5));
    assert_eq!(device.gate().acked, LogOffset::new(9), "acks never go back");
    writer.set_mode(Mode::Halted);
    assert_eq!(
        (device.gate().lease_until, device.mode()),
        (Instant::ZERO, Mode::Halted)
    );
}

#[test]
fn the_doorbell_rings_only_when_an_ack_lets_something_out() {
    let (vmm, mut device, _) = pair(DeviceKind::Net);
    let writer = vmm.gate();
    writer.set_mode(Mode::Live);
    writer.publish_lease(Instant::FOREVER);
    device.gate();
    device.mode();
    device.publish_waiting(Some(LogOffset::new(10)), 3);
    assert!(device.prepare_sleep(true));
    writer.publish_acked(LogOffset::new(9));
    assert!(is_silent(device.doorbell()));
    writer.publish_acked(LogOffset::new(10));
    wait_readable(device.doorbell());
    device.wake_up();
    assert!(is_silent(device.doorbell()));
    let snapshot = writer.snapshot();
    assert_eq!(
        (snapshot.waiting_for, snapshot.held),
        (Some(LogOffset::new(10)), 3)
    );
}

#[test]
fn an_ack_between_the_last_look_and_the_sleep_prevents_the_sleep() {
    let (vmm, mut device, _) = pair(DeviceKind::Net);
    vmm.gate().set_mode(Mode::Live);
    device.gate();
    device.mode();
    device.publish_waiting(Some(LogOffset::new(10)), 1);
    vmm.gate().publish_acked(LogOffset::new(10));
    assert!(!device.prepare_sleep(true));
    device.gate();
    // Acked, but no lease: seen, nothing to do about it before the lease comes.
    assert!(device.prepare_sleep(true));
    vmm.gate().publish_lease(Instant::FOREVER);
    wait_readable(device.doorbell());
}

#[test]
fn orders_keep_a_device_awake_only_while_it_takes_orders() {
    let (mut vmm, mut device, _) = pair(DeviceKind::Net);
    let order = Order {
        queue: QueueIndex::new(1),
        head: Head::new(0),
        needs: LogOffset::ZERO,
    };
    device.mode();
    vmm.push_order(order).unwrap();
    assert!(!device.prepare_sleep(true));
    assert!(device.prepare_sleep(false));
    vmm.flush_orders();
    wait_readable(device.doorbell());
}

fn transmit(head: u16, needs: LogOffset) -> Order {
    Order {
        queue: QueueIndex::new(1),
        head: Head::new(head),
        needs,
    }
}

#[test]
fn a_device_sleeps_through_an_order_until_its_ack() {
    let (mut vmm, mut device, _) = pair(DeviceKind::Net);
    let writer = vmm.gate();
    device.mode();
    assert!(device.prepare_sleep(true));
    vmm.push_order(transmit(0, LogOffset::new(10))).unwrap();
    vmm.defer_orders(LogOffset::new(10), 1);
    writer.publish_acked(LogOffset::new(9));
    assert!(is_silent(device.doorbell()));
    let snapshot = writer.snapshot();
    assert_eq!(
        (snapshot.waiting_for, snapshot.unread),
        (Some(LogOffset::new(10)), 1)
    );

    writer.publish_acked(LogOffset::new(10));
    wait_readable(device.doorbell());
    device.wake_up();
    assert_eq!(device.pop_order().unwrap(), Some(transmit(0, LogOffset::new(10))));
    assert_eq!(writer.snapshot().unread, 0);
}

#[test]
fn an_order_that_is_acked_already_wakes_the_device_at_once() {
    let (mut vmm, mut device, _) = pair(DeviceKind::Net);
    vmm.gate().publish_acked(LogOffset::new(10));
    device.gate();
    device.mode();
    assert!(device.prepare_sleep(true));
    vmm.push_order(transmit(0, LogOffset::new(10))).unwrap();
    vmm.defer_orders(LogOffset::new(10), 1);
    wait_readable(device.doorbell());
}

#[test]
fn a_device_does_not_sleep_through_many_orders() {
    let (mut vmm, mut device, _) = pair(DeviceKind::Net);
    device.mode();
    assert!(device.prepare_sleep(true));
    vmm.defer_orders(LogOffset::new(10), DEFERRED_MAX);
    assert!(is_silent(device.doorbell()));
    vmm.defer_orders(LogOffset::new(11), 1);
    wait_readable(device.doorbell());
}

#[test]
fn a_vmm_sleeps_through_a_few_chains_given_back_but_not_through_many() {
    let (vmm, mut device, _) = pair(DeviceKind::Net);
    assert!(vmm.prepare_sleep());
    device.stage_returned(QueueIndex::new(1), UNTOLD_MAX - 1).unwrap();
    assert!(is_silent(vmm.doorbell()));
    device.stage_returned(QueueIndex::new(1), 1).unwrap();
    wait_readable(vmm.doorbell());
}

#[test]
fn a_full_ring_pushes_back_and_room_wakes_the_device() {
    let (mut vmm, mut device, _) = pair(DeviceKind::Net);
    device.mode();
    let mut staged = 0;
    let full = loop {
        match device.stage_frame(2000, |_| Ok(2000)) {
            Ok(_) => staged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StageError::Full) && staged > 900);
    assert!(device.prepare_sleep(true));
    let mut bytes = Vec::new();
    (0..staged).for_each(|_| assert_eq!(vmm.pop_frame(&mut bytes).unwrap(), Some(2000)));
    wait_readable(device.doorbell());
    device.wake_up();
    device.stage_frame(FRAME_BYTES_MAX, |_| Ok(1)).unwrap();
}

#[test]
fn each_end_notices_that_the_other_is_gone() {
    let (vmm, device, _) = pair(DeviceKind::Net);
    assert!(!device.is_hung_up());
    drop(device);
    wait_readable(vmm.socket());

    let (vmm, device, _) = pair(DeviceKind::Net);
    drop(vmm);
    wait_readable(device.socket());
    assert!(device.is_hung_up());
}

/// Sends `count` numbered entries; sleeps when the ring is full.
fn stage_numbers(device: &mut DeviceEnd, count: u64) {
    for number in 0..count {
        // Lengths vary so that entries end up on both sides of the ring's end.
        let length = 8 + (number % 1500) as usize;
        while let Err(error) = device.stage_frame(length, |room| {
            room.write_obj(number, 0).map_err(io::Error::other)?;
            Ok(length)
        }) {
            assert!(matches!(error, StageError::Full), "{error}");
            if device.prepare_sleep(true) {
                wait_readable(device.doorbell());
            }
            device.wake_up();
        }
    }
}

#[test]
fn a_hundred_thousand_entries_pass_between_sleepy_threads_and_none_is_lost() {
    const COUNT: u64 = 100_000;
    let (mut vmm, mut device, _) = pair(DeviceKind::Net);
    device.mode();
    let sender = std::thread::spawn(move || {
        stage_numbers(&mut device, COUNT);
        device
    });
    let (mut bytes, mut expected, mut sleeps) = (Vec::new(), 0_u64, 0_u64);
    while expected < COUNT {
        if let Some(length) = vmm.pop_frame(&mut bytes).unwrap() {
            assert_eq!(length, 8 + (expected % 1500) as usize);
            assert_eq!(bytes[..8], expected.to_le_bytes());
            expected += 1;
        } else if vmm.prepare_sleep() {
            sleeps += 1;
            wait_readable(vmm.doorbell());
            vmm.wake_up();
        }
    }
    sender.join().unwrap();
    assert!(!vmm.has_inputs());
    println!("the receiver slept {sleeps} times");
}

#[test]
fn orders_and_completions_go_round_between_two_sleepy_threads() {
    const COUNT: u64 = 50_000;
    let (mut vmm, mut device, _) = pair(DeviceKind::Net);
    let queue = QueueIndex::new(1);
    let echo = std::thread::spawn(move || {
        device.mode();
        let mut echoed = 0;
        while echoed < COUNT {
            match device.pop_order().unwrap() {
                Some(order) => {
                    assert_eq!(order.needs, LogOffset::new(echoed));
                    device.stage_completion_bytes(queue, order.head, &[]).unwrap();
                    echoed += 1;
                }
                None if device.prepare_sleep(true) => {
                    wait_readable(device.doorbell());
                    device.wake_up();
                }
                None => {}
            }
        }
        device.tell();
        device
    });
    let (mut sent, mut back, mut bytes) = (0, 0, Vec::new());
    while back < COUNT {
        // At most 64 in flight, as a guest's queue would have it.
        while sent < COUNT && sent - back < 64 {
            vmm.push_order(Order {
                queue,
                head: Head::new(0),
                needs: LogOffset::new(sent),
            })
            .unwrap();
            sent += 1;
        }
        vmm.flush_orders();
        match vmm.pop_completion(&mut bytes).unwrap() {
            Some(staged) => {
                let head = Head::new(0);
                assert_eq!(staged, Staged::Completion { queue, head });
                back += 1;
            }
            None if vmm.prepare_sleep() => {
                wait_readable(vmm.doorbell());
                vmm.wake_up();
            }
            None => {}
        }
    }
    echo.join().unwrap();
}

#[test]
fn a_file_in_the_place_of_the_socket_is_left_alone() {
    let place = place();
    std::fs::write(&place.path, "precious").unwrap();
    let refused = DeviceListener::bind(&place.path).unwrap_err();
    assert!(refused.to_string().contains("is not a socket"), "{refused}");
    assert_eq!(std::fs::read(&place.path).unwrap(), b"precious");
}

#[test]
fn the_living_socket_of_another_kind_is_not_taken_away() {
    let place = place();
    let living = std::os::unix::net::UnixListener::bind(&place.path).unwrap();
    let refused = DeviceListener::bind(&place.path);
    assert!(matches!(refused, Err(BindError::InUse(_))));
    drop(living);
}

#[test]
fn a_device_process_that_takes_nobody_in_is_not_waited_for_longer_than_was_said() {
    let place = place();
    let _busy = DeviceListener::bind(&place.path).unwrap();
    let (told, outcomes) = std::sync::mpsc::channel();
    let path = place.path.clone();
    std::thread::spawn(move || {
        // The first few wait in its queue for an answer, and later ones for a place in the queue.
        for _ in 0..8 {
            let outcome = VmmEnd::connect(&path, &vmm_facts(DeviceKind::Net), Duration::from_millis(20));
            let _ = told.send(outcome.map(drop));
        }
    });
    for _ in 0..8 {
        let outcome = outcomes.recv_timeout(TIMEOUT).expect("each gives up in time");
        assert!(
            matches!(outcome, Err(ConnectError::NoAnswer { .. })),
            "{outcome:?}"
        );
    }
}
