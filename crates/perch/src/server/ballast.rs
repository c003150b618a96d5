//! Space that is set aside so that what makes room can still be written down when the disk is full.
//!
//! A file system that is full takes no commit, not even one that destroys an app. The ballast is a few files; one after
//! the other is given up for such a commit, and set aside again when there is room. Several, because after the first
//! commit somebody may fill what was left of it before the second.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// Files; each is enough for what one destroyed Machine or app has written.
const PIECES: u32 = 8;
/// Bytes in each: the pages of some commits in the store's journal.
const PIECE_BYTES: u64 = 256 * 1024;

/// Files of no content in a directory of their own.
#[derive(Debug)]
pub(crate) struct Ballast {
    dir: PathBuf,
    /// Whether all pieces are there.
    is_whole: AtomicBool,
}

impl Ballast {
    /// All of it given up, for a start on a full disk; to be set aside anew when that is over.
    pub(crate) fn given_up(dir: PathBuf) -> Self {
        let ballast = Self { dir, is_whole: AtomicBool::new(false) };
        while ballast.drop_piece() {}
        ballast
    }

    /// Sets aside what is missing. Costs nothing when nothing is.
    pub(crate) fn renew(&self) {
        if self.is_whole.load(Ordering::Relaxed) {
            return;
        }
        match (0..PIECES).try_for_each(|number| make(&self.piece(number))) {
            Ok(()) => self.is_whole.store(true, Ordering::Relaxed),
            Err(error) => tracing::debug!(%error, "no room for the ballast"),
        }
    }

    /// Gives one piece up; `false` when there is none.
    pub(crate) fn drop_piece(&self) -> bool {
        self.is_whole.store(false, Ordering::Relaxed);
        (0..PIECES).any(|number| fs::remove_file(self.piece(number)).is_ok())
    }

    fn piece(&self, number: u32) -> PathBuf {
        self.dir.join(number.to_string())
    }
}

/// Makes one piece, whole or not at all.
fn make(path: &Path) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() == PIECE_BYTES) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    allocate(file).inspect_err(|_| drop(fs::remove_file(path)))
}

fn allocate(mut file: File) -> io::Result<()> {
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, PIECE_BYTES) {
        // Some file systems set nothing aside but what is written.
        Err(Errno::OPNOTSUPP) => {
            io::copy(&mut io::Read::take(io::repeat(1), PIECE_BYTES), &mut file)
                .and_then(|_| file.flush())
        }
        done => done.map_err(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_given_up_one_by_one_and_set_aside_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ballast = Ballast::given_up(dir.path().join("ballast"));
        ballast.renew();
        let bytes = || -> u64 {
            let files = fs::read_dir(dir.path().join("ballast")).expect("there").flatten();
            files.map(|file| file.metadata().expect("there").len()).sum()
        };
        assert_eq!(bytes(), u64::from(PIECES) * PIECE_BYTES);
        assert!(ballast.drop_piece());
        assert_eq!(bytes(), u64::from(PIECES - 1) * PIECE_BYTES);
        while ballast.drop_piece() {}
        assert_eq!(bytes(), 0);
        ballast.renew();
        assert_eq!(bytes(), u64::from(PIECES) * PIECE_BYTES);
    }

    #[test]
    fn a_place_where_nothing_can_be_made_is_no_error() {
        let ballast = Ballast::given_up(PathBuf::from("/proc/ballast"));
        ballast.renew();
        assert!(!ballast.drop_piece());
    }
}
