//! Frames in: from the tap into the staging ring (protected), into the guest's buffers (plain), or nowhere (a backup).
//!
//! Called by `device.rs` when the tap has something or when room came back. It reads the tap only while there is room
//! for what it reads, so a slow guest fills the kernel's queue, which drops: as a network card does.

use std::io;

use lockstep_protocol::ids::Head;
use lockstep_staging::chain::Segment;
use lockstep_staging::limits::FRAME_BYTES_MAX;
use lockstep_staging::{DeviceEnd, Fault, StageError};
use vm_memory::{Bytes, VolatileSlice};

use crate::frame::{HEADER, NUM_BUFFERS, is_frame_length};
use crate::limits::RX_BURST;
use crate::queue::{BrokenQueue, Done, PlainQueue};
use crate::tap::{Tap, is_frames_fault};

/// How a burst ended.
#[derive(Debug)]
pub enum Burst {
    /// The tap has no frame left.
    Empty,
    /// It may have more; others have their turn first.
    More,
    /// There is no room for another frame now.
    NoRoom,
    /// The tap is gone or broken.
    NoTap(io::Error),
}

/// The receiving half of the device.
#[derive(Debug)]
pub struct Rx {
    /// A frame on its way into a plain guest's buffers.
    frame: Box<[u8]>,
    /// How long that frame is, while it waits for buffers.
    waiting: Option<usize>,
    /// One frame may be spread over several buffers.
    mergeable: bool,
    /// Bytes of the header that the driver expects.
    header: usize,
}

/// What became of one frame.
enum Delivery {
    Delivered,
    /// No buffers of the queue could ever take it.
    Impossible,
    NoBuffers,
}

/// One step of reading the tap.
enum Step {
    Frame(usize),
    Skip,
    End(Burst),
}

impl Default for Rx {
    fn default() -> Self {
        Self {
            frame: vec![0; FRAME_BYTES_MAX].into_boxed_slice(),
            waiting: None,
            mergeable: false,
            header: HEADER,
        }
    }
}

impl Rx {
    /// Starts over for a driver that did or did not take mergeable buffers, and whose header is so long.
    pub fn reset(&mut self, mergeable: bool, header: usize) {
        self.waiting = None;
        self.mergeable = mergeable;
        self.header = header;
    }

    /// Reads frames straight into the staging ring.
    pub fn stage(&mut self, tap: &Tap, end: &mut DeviceEnd) -> Result<Burst, Fault> {
        for _ in 0..RX_BURST {
            let staged = end.stage_frame(FRAME_BYTES_MAX, |room| {
                let length = receive(tap, room)?;
                // The kernel leaves the count of buffers as it found it; replicas must not.
                room.write_obj(1_u16.to_le(), NUM_BUFFERS)
                    .map_err(io::Error::other)?;
                Ok(length)
            });
            match staged {
                Ok(_) => {}
                Err(StageError::Full) => return Ok(Burst::NoRoom),
                Err(StageError::Fault(fault)) => return Err(fault),
                Err(StageError::TooLong) => {
                    unreachable!("the ring was checked at set-up to take the longest frame")
                }
                Err(StageError::Io(error)) => {
                    if let Step::End(burst) = judge(Err(error)) {
                        return Ok(burst);
                    }
                }
            }
        }
        Ok(Burst::More)
    }

    /// Reads frames and forgets them: the backup's guest gets them from the primary's log.
    pub fn discard(&mut self, tap: &Tap) -> Burst {
        for _ in 0..RX_BURST {
            if let Step::End(burst) = judge(receive(tap, &mut VolatileSlice::from(&mut *self.frame))) {
                return burst;
            }
        }
        Burst::More
    }

    /// Copies frames into a plain guest's buffers.
    pub fn deliver(&mut self, tap: &Tap, queue: &mut PlainQueue<'_>) -> Result<Burst, BrokenQueue> {
        queue.spare_kicks()?;
        let mut delivered = 0;
        let mut burst = Burst::More;
        while delivered < RX_BURST {
            let length = match self.next_frame(tap) {
                Step::Frame(length) => length,
                Step::Skip => continue,
                Step::End(end) => {
                    burst = end;
                    break;
                }
            };
            match self.deliver_one(length, queue)? {
                Delivery::Delivered | Delivery::Impossible => {
                    self.waiting = None;
                    delivered += 1;
                }
                Delivery::NoBuffers => {
                    burst = Burst::NoRoom;
                    break;
                }
            }
        }
        if delivered > 0 {
            queue.notify()?;
        }
        Ok(burst)
    }

    fn next_frame(&mut self, tap: &Tap) -> Step {
        if let Some(length) = self.waiting {
            return Step::Frame(length);
        }
        let step = judge(receive(tap, &mut VolatileSlice::from(&mut *self.frame)));
        if let Step::Frame(length) = step {
            self.waiting = Some(length);
        }
        step
    }

    fn deliver_one(&mut self, length: usize, queue: &mut PlainQueue<'_>) -> Result<Delivery, BrokenQueue> {
        let mut buffers = Vec::new();
        let (mut room, mut taken) = (0, 0);
        while room < length {
            let alone = !self.mergeable && !buffers.is_empty();
            // A whole queue of buffers, good and bad, could not take this frame: none will.
            if alone || taken == queue.size() {
                queue.put_back(buffers.len());
                return Ok(Delivery::Impossible);
            }
            let Some(head) = pop_or_ask(queue)? else {
                queue.put_back(buffers.len());
                return Ok(Delivery::NoBuffers);
            };
            taken += 1;
            match queue.chain(head) {
                Ok(chain) if chain.readable.is_empty() && space(&chain.writable) >= self.header => {
                    room += space(&chain.writable);
                    buffers.push((head, chain.writable));
                }
                // A bad buffer goes back empty, and the good ones before it with it: order is kept.
                _ => {
                    let heads = buffers.drain(..).map(|(head, _)| head).chain([head]);
                    let done: Vec<Done> = heads.map(|head| Done { head, length: 0 }).collect();
                    queue.complete(&done)?;
                    queue.notify()?;
                    room = 0;
                }
            }
        }
        let count = u16::try_from(buffers.len()).expect("a queue has at most 32768 buffers");
        // Where a short header ends the frame begins.
        if self.header == HEADER {
            self.frame[NUM_BUFFERS..HEADER].copy_from_slice(&count.to_le_bytes());
        }
        let done = scatter(&self.frame[..length], &buffers, queue)?;
        queue.complete(&done)?;
        Ok(Delivery::Delivered)
    }
}

/// The next buffer; if there is none, the driver's next one brings a kick.
fn pop_or_ask(queue: &mut PlainQueue<'_>) -> Result<Option<Head>, BrokenQueue> {
    if let Some(head) = queue.pop()? {
        return Ok(Some(head));
    }
    // A buffer that came between the last look and asking for kicks brings no kick. All that were there are taken at
    // this moment, so whatever is there now is new.
    if queue.ask_for_kicks()? {
        queue.pop()
    } else {
        Ok(None)
    }
}

fn space(segments: &[Segment]) -> usize {
    segments.iter().map(|segment| segment.length as usize).sum()
}

/// Fills the buffers in order.
fn scatter(
    mut frame: &[u8],
    buffers: &[(Head, Vec<Segment>)],
    queue: &PlainQueue<'_>,
) -> Result<Vec<Done>, BrokenQueue> {
    let mut done = Vec::with_capacity(buffers.len());
    for (head, segments) in buffers {
        let mut written = 0;
        for segment in segments {
            let (now, later) = frame.split_at(frame.len().min(segment.length as usize));
            queue.memory().write_slice(now, segment.start)?;
            written += now.len();
            frame = later;
        }
        let length = u32::try_from(written).expect("a frame is shorter than 4 GiB");
        done.push(Done { head: *head, length });
    }
    Ok(done)
}

fn receive(tap: &Tap, room: &mut VolatileSlice<'_>) -> io::Result<usize> {
    let length = tap.receive(room)?;
    if is_frame_length(length) {
        Ok(length)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

fn judge(received: io::Result<usize>) -> Step {
    match received {
        Ok(length) => Step::Frame(length),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Step::End(Burst::Empty),
        Err(error) if is_frames_fault(&error) => Step::Skip,
        Err(error) => Step::End(Burst::NoTap(error)),
    }
}

#[cfg(test)]
mod tests;
