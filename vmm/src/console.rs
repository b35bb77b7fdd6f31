//! The guest's serial console as people see it: whole lines on the log, one event a line.
//! The run loop feeds it; a guest that prints without line ends is cut, never kept for ever.

/// A line longer than this is shown in pieces.
const LINE_MAX: usize = 512;

/// What was printed and is not yet a whole line.
#[derive(Debug, Default)]
pub struct Console {
    line: Vec<u8>,
}

impl Console {
    /// The guest printed `bytes`.
    pub fn print(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' => self.show(),
                b'\r' => {}
                _ => self.line.push(byte),
            }
            if self.line.len() >= LINE_MAX {
                self.show();
            }
        }
    }

    fn show(&mut self) {
        tracing::info!(target: "guest", "{}", String::from_utf8_lossy(&self.line).escape_debug());
        self.line.clear();
    }
}
