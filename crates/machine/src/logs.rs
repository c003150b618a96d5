//! The log of a Machine: two files, one line of the program each, stamped by the shim.
//!
//! A line reads `2026-01-02T03:04:05.678901Z stdout text`. `log` grows to 8 MiB and is then renamed to `log.1`, so a
//! Machine's log takes at most 16 MiB. The first line of a later file is the writer's own, `… rotated BYTES`: how much was
//! written before it. By that a reader knows what it missed. Nobody waits for readers: they are at files.

use std::collections::VecDeque;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest line; a longer one is cut into pieces of this size. Fly's logs cut at the same order of size.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Size at which `log` becomes `log.1`.
const FILE_BYTES_MAX: u64 = 8 << 20;

const CURRENT: &str = "log";
const FORMER: &str = "log.1";
/// The stream of the writer's own lines.
const ROTATED: &str = "rotated";
/// The writer's own line is shorter.
const HEAD_BYTES_MAX: usize = 128;

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

/// A place in a Machine's log that outlives its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which file; no later one has the same, though its number may come again.
    pub file: u64,
    /// Bytes of whole lines before the place.
    pub offset: u64,
    /// Bytes that were written before that file; the largest number when nobody knows.
    pub base: u64,
}

impl Place {
    fn position(&self) -> u64 {
        self.base.saturating_add(self.offset)
    }
}

/// Follows a Machine's log across rotation. Reading is incremental: each call returns what came since.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    file: Option<BufReader<File>>,
    partial: Vec<u8>,
    /// Bytes of whole lines that were read of `file`.
    offset: u64,
    /// Bytes that were written before `file`.
    base: u64,
    /// Where the next byte to be read is among all that were ever written; unknown to who begins.
    expected: Option<u64>,
    /// Bytes that were gone before they were read.
    missed: u64,
    /// Lines read ahead by `from_tail`.
    ahead: VecDeque<LogLine>,
}

impl LogReader {
    /// A reader that begins with the oldest line kept.
    pub fn from_start(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            file: None,
            partial: Vec::new(),
            offset: 0,
            base: 0,
            expected: None,
            missed: 0,
            ahead: VecDeque::new(),
        }
    }

    /// A reader that goes on at `place`, or begins with the oldest line kept if that file is gone. At the end of the
    /// log there is nothing to read: `None`, for the price of one look at the file's size.
    pub fn from_place(dir: &Path, place: Place) -> io::Result<Option<Self>> {
        let is_there = |meta: &Metadata| identity(meta) == place.file && place.offset <= meta.len();
        match std::fs::metadata(dir.join(CURRENT)) {
            Ok(meta) if is_there(&meta) && meta.len() == place.offset => return Ok(None),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => {}
        }
        let mut reader = Self::from_start(dir);
        for name in [FORMER, CURRENT] {
            let Some(mut file) = open(&dir.join(name))? else { continue };
            if is_there(&file.get_ref().metadata()?) {
                file.seek(SeekFrom::Start(place.offset))?;
                reader.base = base_of(file.get_ref())?;
                (reader.file, reader.offset) = (Some(file), place.offset);
                return Ok(Some(reader));
            }
        }
        reader.expected = Some(place.position());
        Ok(Some(reader))
    }

    /// Bytes, as they are stored, that were rotated away before this reader came to them.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Where the next line that was not read yet begins; `None` while there is no log. Lines that
    /// [`LogReader::from_tail`] found count as read.
    pub fn place(&self) -> io::Result<Option<Place>> {
        let Some(file) = &self.file else { return Ok(None) };
        let file = identity(&file.get_ref().metadata()?);
        Ok(Some(Place { file, offset: self.offset, base: self.base }))
    }

    /// A reader that begins `lines` before the end, or where so many bytes of text are left.
    pub fn from_tail(dir: &Path, lines: usize, bytes: usize) -> io::Result<Self> {
        let mut reader = Self::from_start(dir);
        let mut tail = VecDeque::new();
        let mut kept = 0;
        while let Some(line) = reader.next_line()? {
            kept += line.text.len();
            tail.push_back(line);
            while lines < tail.len() || (bytes < kept && 1 < tail.len()) {
                kept -= tail.pop_front().map_or(0, |line: LogLine| line.text.len());
            }
        }
        reader.ahead = tail;
        Ok(reader)
    }

    /// Up to `max` whole lines that came since the last call; empty when there are none.
    pub fn read(&mut self, max: usize) -> io::Result<Vec<LogLine>> {
        self.read_within(max, usize::MAX)
    }

    /// As [`LogReader::read`], and no further line once there are `bytes` of text.
    pub fn read_within(&mut self, max: usize, bytes: usize) -> io::Result<Vec<LogLine>> {
        let (mut lines, mut length) = (Vec::new(), 0);
        while lines.len() < max && length < bytes {
            let next = match self.ahead.pop_front() {
                Some(line) => Some(line),
                None => self.next_line()?,
            };
            let Some(line) = next else { break };
            length += line.text.len();
            lines.push(line);
        }
        Ok(lines)
    }

    fn next_line(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            if self.file.is_none() && !self.open_first()? {
                return Ok(None);
            }
            let Some(file) = &mut self.file else { return Ok(None) };
            file.read_until(b'\n', &mut self.partial)?;
            if self.partial.last() == Some(&b'\n') {
                self.offset += self.partial.len() as u64;
                self.partial.pop();
                let line = parse(&std::mem::take(&mut self.partial));
                if line.as_ref().is_some_and(|line| line.stream != ROTATED) {
                    return Ok(line);
                }
            } else if !self.open_next()? {
                return Ok(None);
            }
        }
    }

    fn open_first(&mut self) -> io::Result<bool> {
        let oldest = match open(&self.dir.join(FORMER))? {
            Some(file) => Some(file),
            None => open(&self.dir.join(CURRENT))?,
        };
        let Some(file) = oldest else { return Ok(false) };
        self.begin(file)?;
        Ok(true)
    }

    /// Goes on at the begin of a file, and notes what was lost before it.
    fn begin(&mut self, file: BufReader<File>) -> io::Result<()> {
        self.base = base_of(file.get_ref())?;
        let expected = self.expected.take().unwrap_or(self.base);
        self.missed += self.base.saturating_sub(expected);
        self.partial.clear();
        (self.file, self.offset) = (Some(file), 0);
        Ok(())
    }

    /// At the end of a file that has been rotated away, goes on with the current one.
    fn open_next(&mut self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let Some(current) = open(&self.dir.join(CURRENT))? else { return Ok(false) };
        let (old, new) = (file.get_ref().metadata()?, current.get_ref().metadata()?);
        if (old.dev(), old.ino()) == (new.dev(), new.ino()) {
            return Ok(false);
        }
        self.expected = Some(self.base + self.offset);
        self.begin(current)?;
        Ok(true)
    }
}

/// How much was written before a file, by its first line.
fn base_of(file: &File) -> io::Result<u64> {
    let mut head = [0; HEAD_BYTES_MAX];
    let count = file.read_at(&mut head, 0)?;
    let first = head[..count].split(|byte| *byte == b'\n').next().and_then(parse);
    let own = first.filter(|line| line.stream == ROTATED);
    Ok(own.and_then(|line| line.text.parse().ok()).unwrap_or(0))
}

/// A file system gives a freed number to the next file, but not with the same time of birth.
fn identity(meta: &Metadata) -> u64 {
    let born = meta.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    let born = born.map_or(0, |born| u64::try_from(born.as_nanos()).unwrap_or(u64::MAX));
    born ^ meta.ino().rotate_left(32)
}

fn open(path: &Path) -> io::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(line: &[u8]) -> Option<LogLine> {
    let line = String::from_utf8_lossy(line);
    let mut parts = line.splitn(3, ' ');
    let (timestamp, stream, text) = (parts.next()?, parts.next()?, parts.next()?);
    Some(LogLine { timestamp: timestamp.into(), stream: stream.into(), text: text.into() })
}

/// Writes the log. One per shim.
#[derive(Debug)]
pub(crate) struct LogWriter {
    dir: PathBuf,
    file: File,
    len: u64,
}

impl LogWriter {
    /// Opens the log for appending.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).append(true).open(dir.join(CURRENT))?;
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { dir: dir.to_owned(), file, len })
    }

    /// Writes whole lines, made by `Lines::take`.
    pub(crate) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.len + lines.len() as u64 > FILE_BYTES_MAX && self.len > 0 {
            let base = base_of(&File::open(self.dir.join(CURRENT))?)? + self.len;
            std::fs::rename(self.dir.join(CURRENT), self.dir.join(FORMER))?;
            *self = Self::open(&self.dir)?;
            let head = format!("{} {ROTATED} {base}\n", timestamp(SystemTime::now()));
            self.file.write_all(head.as_bytes())?;
            self.len += head.len() as u64;
        }
        self.file.write_all(lines)?;
        self.len += lines.len() as u64;
        Ok(())
    }
}

/// Cuts what comes from one pipe into stamped lines.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: &'static str,
    partial: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: &'static str) -> Self {
        Self { stream, partial: Vec::new() }
    }

    /// The lines that `bytes` completes, each with stamp and newline.
    pub(crate) fn take(&mut self, bytes: &[u8], now: SystemTime) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            for chunk in text.chunks(LINE_BYTES_MAX) {
                if self.partial.len() + chunk.len() > LINE_BYTES_MAX {
                    self.flush(&mut out, now);
                }
                self.partial.extend_from_slice(chunk);
            }
            if ends {
                self.flush(&mut out, now);
            }
        }
        out
    }

    /// What is left when the pipe has ended.
    pub(crate) fn finish(&mut self, now: SystemTime) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.partial.is_empty() {
            self.flush(&mut out, now);
        }
        out
    }

    fn flush(&mut self, out: &mut Vec<u8>, now: SystemTime) {
        out.extend_from_slice(timestamp(now).as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.stream.as_bytes());
        out.push(b' ');
        out.append(&mut self.partial);
        out.push(b'\n');
    }
}

/// RFC 3339 in UTC with microseconds.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
}

/// Year, month and day of a day since 1970: "civil_from_days" of howardhinnant.github.io/date_algorithms.html, for
/// days from 1970 on. Years begin in March there, so that the leap day comes last.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(micros)
    }

    #[test]
    fn times_read_as_rfc_3339() {
        assert_eq!(timestamp(at(0)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(timestamp(at(951_782_400_000_001)), "2000-02-29T00:00:00.000001Z");
        assert_eq!(timestamp(at(1_767_323_045_678_901)), "2026-01-02T03:04:05.678901Z");
    }

    #[test]
    fn a_line_is_stamped_when_it_ends() {
        let mut lines = Lines::new("stdout");
        assert!(lines.take(b"half", at(0)).is_empty());
        let out = lines.take(b" whole\n\nrest", at(1));
        let stamp = "1970-01-01T00:00:00.000001Z stdout";
        assert_eq!(String::from_utf8_lossy(&out), format!("{stamp} half whole\n{stamp} \n"));
        assert!(String::from_utf8_lossy(&lines.finish(at(2))).ends_with("stdout rest\n"));
    }

    #[test]
    fn a_line_without_end_is_cut_and_never_held_beyond_its_limit() {
        let mut lines = Lines::new("stderr");
        let out = lines.take(&vec![b'x'; 3 * LINE_BYTES_MAX + 1], at(0));
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 3);
        assert_eq!(lines.partial.len(), 1);
    }

    #[test]
    fn a_reader_follows_across_rotation() -> io::Result<()> {
        let dir = crate::scratch_dir("logs")?;
        let mut reader = LogReader::from_start(&dir);
        assert!(reader.read(10)?.is_empty());
        let mut writer = LogWriter::open(&dir)?;
        writer.append(b"t stdout one\n")?;
        assert_eq!(reader.read(10)?.len(), 1);
        writer.append(b"t stdout two\n")?;
        writer.len = FILE_BYTES_MAX;
        writer.append(b"t stdout three\nt stdout ")?;
        let texts: Vec<_> = reader.read(10)?.into_iter().map(|line| line.text).collect();
        assert_eq!(texts, ["two", "three"]);
        writer.append(b"four\n")?;
        assert_eq!(reader.read(10)?[0].text, "four");
        let mut tail = LogReader::from_tail(&dir, 2, usize::MAX)?;
        assert_eq!(tail.read(1)?[0].text, "three");
        std::fs::remove_dir_all(dir)
    }

    #[test]
    fn a_place_is_found_again_after_a_rotation_and_forgotten_after_two() -> io::Result<()> {
        let dir = crate::scratch_dir("places")?;
        let mut writer = LogWriter::open(&dir)?;
        writer.append(b"t stdout one\nt stdout half")?;
        let mut reader = LogReader::from_start(&dir);
        assert_eq!(reader.read(10)?.len(), 1);
        let place = reader.place()?.ok_or(io::ErrorKind::NotFound)?;
        writer.append(b" of two\n")?;
        let after = |place| -> io::Result<Vec<String>> {
            let Some(mut reader) = LogReader::from_place(&dir, place)? else {
                return Ok(Vec::new());
            };
            Ok(reader.read(10)?.into_iter().map(|line| line.text).collect())
        };
        assert_eq!(after(place)?, ["half of two"]);
        for text in [&b"t stdout three\n"[..], b"t stdout 4\n"] {
            writer.len = FILE_BYTES_MAX;
            writer.append(text)?;
            let expected = if text.ends_with(b"three\n") { "half of two" } else { "three" };
            assert_eq!(after(place)?[0], expected);
        }
        assert_eq!(after(place)?, ["three", "4"]);
        std::fs::remove_dir_all(dir)
    }

    #[test]
    fn a_reader_knows_how_much_was_gone_before_it_came() -> io::Result<()> {
        let dir = crate::scratch_dir("missed")?;
        let mut writer = LogWriter::open(&dir)?;
        let write = |writer: &mut LogWriter, count: usize| -> io::Result<u64> {
            let before = writer.len;
            let line = format!("t stdout {}\n", "x".repeat(LINE_BYTES_MAX - 10));
            (0..count).try_for_each(|_| writer.append(line.as_bytes()))?;
            Ok(writer.len.abs_diff(before))
        };
        write(&mut writer, 1)?;
        let mut reader = LogReader::from_start(&dir);
        assert_eq!(reader.read(10)?.len(), 1);
        let place = reader.place()?.ok_or(io::ErrorKind::NotFound)?;
        // 512 such lines fill a file: the place's file is renamed, and then gone.
        let to = |place| -> io::Result<(u64, usize)> {
            let mut reader = LogReader::from_place(&dir, place)?.ok_or(io::ErrorKind::NotFound)?;
            let count = reader.read(usize::MAX)?.len();
            Ok((reader.missed(), count))
        };
        write(&mut writer, 600)?;
        assert_eq!(to(place)?, (0, 600), "all is there");
        write(&mut writer, 1000)?;
        let (missed, count) = to(place)?;
        let lines = LINE_BYTES_MAX as u64 * (1600 - count as u64);
        assert!(lines.abs_diff(missed) < 1024, "{missed} of {lines}, {count} are left");
        // A reader at the end of its file that finds it two files behind has missed the one between.
        let mut slow = LogReader::from_place(&dir, Place { base: u64::MAX, ..place })?
            .ok_or(io::ErrorKind::NotFound)?;
        assert!(!slow.read(1)?.is_empty() && slow.missed() == 0, "nobody knows what was before");
        let few = LogReader::from_tail(&dir, 100, 10 * LINE_BYTES_MAX)?.read(100)?.len();
        assert_eq!(few, 10);
        assert_eq!(reader.read_within(100, 3 * LINE_BYTES_MAX)?.len(), 4);
        std::fs::remove_dir_all(dir)
    }

    #[test]
    fn at_the_end_of_the_log_there_is_nothing_to_read() -> io::Result<()> {
        let dir = crate::scratch_dir("ends")?;
        let mut reader = LogReader::from_start(&dir);
        assert_eq!(reader.place()?, None);
        let mut writer = LogWriter::open(&dir)?;
        writer.append(b"t stdout one\n")?;
        assert_eq!(reader.read(10)?.len(), 1);
        let place = reader.place()?.ok_or(io::ErrorKind::NotFound)?;
        assert!(LogReader::from_place(&dir, place)?.is_none());
        writer.append(b"t stdout two\n")?;
        assert!(LogReader::from_place(&dir, place)?.is_some());
        std::fs::remove_dir_all(dir)
    }
}
