//! The second half of a page-out: what is in swap leaves RAM.
//!
//! ```text
//!  all is on its way to the disk ──writes end──► a chunk leaves RAM ──► … ──► no copy is left, or the kernel gives none
//! ```
//!
//! The kernel starts to write a page and keeps it: it lies at the end of its list, the first to go, until somebody of the
//! same memory cgroup wants room. Without that the host's MemAvailable does not rise.

use std::io;
use std::time::{Duration, Instant};

use super::{CHUNK, MakeRoom, is_not_at_once};
use crate::launch::Machine;

/// Between two looks whether the disk is done: less than a wake may wait.
const NAP: Duration = Duration::from_millis(2);
/// A disk that wrote nothing for so long is not waited for; what is left goes when somebody wants the room.
const STALL_MAX: Duration = Duration::from_secs(5);
/// The kernel counts no better than that.
const LEFT: u64 = 1 << 20;
/// Of a large heap so much may be left.
const LEFT_PART: u64 = 64;

/// So many chunks may be asked for that cost files instead, which the next wake would read again.
const IN_VAIN_MAX: u32 = 8;

impl Machine {
    /// Frees what is in swap and in RAM as well, while `go_on` says so. Blocks; between two chunks it is looked whether
    /// the Machine is needed. Where the kernel gives up files instead, copies stay: they are its to drop at any time.
    pub(super) fn drop_copies(
        &self,
        go_on: &dyn Fn() -> bool,
        make: &mut MakeRoom<'_>,
    ) -> io::Result<()> {
        let look = || self.cgroups().copies().unwrap_or_default();
        let mut copies = look();
        let enough = LEFT.max(copies.bytes / LEFT_PART);
        let (mut moved_at, mut in_vain) = (Instant::now(), 0);
        // What is smaller than what may be left goes, too, if it goes at once.
        while 0 < copies.bytes && in_vain < IN_VAIN_MAX && moved_at.elapsed() < STALL_MAX && go_on()
        {
            let ready = copies.bytes.saturating_sub(copies.in_flight);
            let Some(made) = drop_some(ready, make)? else { return Ok(()) };
            let before = std::mem::replace(&mut copies, look());
            let fell = copies.bytes < before.bytes;
            if fell || copies.in_flight < before.in_flight {
                moved_at = Instant::now();
            }
            match (made, fell) {
                (true, true) => in_vain = 0,
                (true, false) => in_vain += 1,
                (false, _) => std::thread::sleep(NAP),
            }
            if made && before.in_flight == 0 && copies.bytes <= enough {
                break;
            }
        }
        if enough < copies.bytes {
            tracing::debug!(machine = self.spec().machine, copies.bytes, "copies stay in RAM");
        }
        Ok(())
    }
}

/// Whether a chunk of what is ready could go; `None`: the kernel has no way.
fn drop_some(ready: u64, make: &mut MakeRoom<'_>) -> io::Result<Option<bool>> {
    if ready == 0 {
        return Ok(Some(false));
    }
    match make(CHUNK.min(ready)) {
        Ok(()) => Ok(Some(true)),
        Err(error) if is_not_at_once(&error) => Ok(Some(false)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
