//! Log reading: the Machines' own lines and the platform's, merged by time.
//!
//! A page token says how far each source was read: `v2.SERIES.READ~MACHINE.FILE.OFFSET.BASE~…`, numbers in hexadecimal. A
//! line is given once, however late it was written; only within a page lines are sorted by time. What was rotated away before a
//! reader asked for it is told to it in a line of its own.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use perch_api::wire::{
    ApiError, LogAttributes, LogEntry, LogEvent, LogMeta, LogPage, LogPageMeta, LogQuery,
};
use perch_machine::logs::{LogLine, LogReader, Place};

use crate::server::clock;
use crate::server::platform_log::Mark;
use crate::server::world::World;

/// Lines of one Machine that a page looks at. What is older stays in the files.
const LINES_MAX: usize = 10_000;
/// Text of all Machines in a page, and the least of each: what a reader that does not read costs is bounded.
const PAGE_BYTES_MAX: usize = 4 << 20;
const MACHINE_BYTES_MIN: usize = 64 << 10;
/// How often a held request looks for new lines: one look at the size of each Machine's log.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Where a page begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Token {
    /// Whether nothing was given yet: then a page begins some lines before the end.
    first: bool,
    platform: Option<Mark>,
    machines: BTreeMap<String, Place>,
}

impl Token {
    /// A token that is none of ours means what no token means.
    fn parse(text: &str) -> Self {
        Self::parse_own(text).unwrap_or_else(|| Self { first: true, ..Self::default() })
    }

    fn parse_own(text: &str) -> Option<Self> {
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let mut parts = text.strip_prefix("v2.")?.split('~');
        let (series, read) = parts.next()?.split_once('.')?;
        let (series, read) = (number(series)?, number(read)?);
        let platform = (series != 0).then_some(Mark { series, read });
        let mut machines = BTreeMap::new();
        for part in parts {
            let mut words = part.split('.');
            let (machine, file, offset) = (words.next()?, words.next()?, words.next()?);
            // Tokens of an earlier release have no base.
            let base = words.next().map_or(Some(u64::MAX), number)?;
            let place = Place { file: number(file)?, offset: number(offset)?, base };
            machines.insert(machine.to_owned(), place);
        }
        Some(Self { first: false, platform, machines })
    }

    fn text(&self) -> String {
        let (series, read) = self.platform.map_or((0, 0), |mark| (mark.series, mark.read));
        let mut text = format!("v2.{series:x}.{read:x}");
        for (machine, place) in &self.machines {
            text += &format!("~{machine}.{:x}.{:x}.{:x}", place.file, place.offset, place.base);
        }
        text
    }
}

/// Reads lines after the token; holds an answer that would be empty.
pub(crate) async fn read(
    world: Arc<World>,
    app: String,
    query: LogQuery,
) -> Result<LogPage, ApiError> {
    world.keeper.read().app(&app)?;
    let deadline = tokio::time::Instant::now() + query.hold;
    let token = Token::parse(&query.next_token);
    loop {
        let (reader, name, wanted, from) =
            (world.clone(), app.clone(), query.clone(), token.clone());
        let page = tokio::task::spawn_blocking(move || page(&reader, &name, &wanted, &from)).await;
        let page = page.map_err(|error| ApiError::internal(error.to_string()))?;
        if !page.data.is_empty() || deadline <= tokio::time::Instant::now() {
            return Ok(page);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn page(world: &World, app: &str, query: &LogQuery, token: &Token) -> LogPage {
    let region = &world.config.region;
    let mut next = Token::default();
    let mut data = Vec::new();
    if query.region.as_ref().is_none_or(|wanted| wanted == region) {
        let wanted = |machine: &str| query.instance.as_deref().is_none_or(|only| only == machine);
        let dirs: Vec<_> =
            machine_dirs(world, app).into_iter().filter(|(id, _)| wanted(id)).collect();
        let bytes = (PAGE_BYTES_MAX / dirs.len().max(1)).max(MACHINE_BYTES_MIN);
        for (id, dir) in dirs {
            data.extend(machine_entries(&id, &dir, region, token, &mut next, bytes));
        }
        let (lines, mark) = world.platform_log.since(app, token.platform);
        next.platform = mark;
        data.extend(lines.into_iter().filter(|line| wanted(&line.machine)).map(|line| {
            entry(line.timestamp, line.text, &line.level, &line.machine, region, line.provider)
        }));
    }
    data.sort_by(|a, b| a.attributes.timestamp.cmp(&b.attributes.timestamp));
    LogPage { data, meta: LogPageMeta { next_token: next.text() } }
}

fn machine_dirs(world: &World, app: &str) -> Vec<(String, PathBuf)> {
    let catalog = world.keeper.read();
    catalog.machines_of(app).map(|it| (it.id.clone(), world.paths.machine(&it.id))).collect()
}

/// What came from a Machine since `token`; notes in `next` how far that is. A Machine that never wrote has no log.
fn machine_entries(
    id: &str,
    dir: &Path,
    region: &str,
    token: &Token,
    next: &mut Token,
    bytes: usize,
) -> Vec<LogEntry> {
    let former = token.machines.get(id).copied();
    let read = machine_lines(dir, former, token.first, bytes).unwrap_or_else(|error| {
        tracing::debug!(machine = id, %error, "could not read the log");
        Read { lines: Vec::new(), place: former, missed: 0 }
    });
    next.machines.extend(read.place.map(|place| (id.to_owned(), place)));
    let mut entries = Vec::new();
    if 0 < read.missed {
        let time = read.lines.first().map(|line| line.timestamp.clone());
        let text = missed_text(read.missed);
        entries.push(entry(time.unwrap_or_else(clock::stamp), text, "warn", id, region, "runner"));
    }
    let made = read.lines.into_iter();
    let made = made.map(|line| entry(line.timestamp, line.text, "info", id, region, "app"));
    entries.extend(made);
    entries
}

/// What a reader is told that was too slow.
fn missed_text(bytes: u64) -> String {
    let amount = match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1_000)),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
    };
    format!("{amount} of the log are missing here: they were rotated away before they were read")
}

/// What came of a Machine's log.
struct Read {
    lines: Vec<LogLine>,
    place: Option<Place>,
    /// Bytes that were gone before.
    missed: u64,
}

fn machine_lines(dir: &Path, former: Option<Place>, first: bool, bytes: usize) -> io::Result<Read> {
    let reader = match former {
        Some(place) => LogReader::from_place(dir, place)?,
        None if first => Some(LogReader::from_tail(dir, LINES_MAX, bytes)?),
        None => Some(LogReader::from_start(dir)),
    };
    let Some(mut reader) = reader else {
        return Ok(Read { lines: Vec::new(), place: former, missed: 0 });
    };
    // What the tail has is all of it.
    let bytes = if former.is_none() && first { usize::MAX } else { bytes };
    let lines = reader.read_within(LINES_MAX, bytes)?;
    Ok(Read { lines, place: reader.place()?.or(former), missed: reader.missed() })
}

fn entry(
    timestamp: String,
    message: String,
    level: &str,
    machine: &str,
    region: &str,
    provider: &str,
) -> LogEntry {
    let meta = LogMeta {
        instance: machine.to_owned(),
        region: region.to_owned(),
        event: LogEvent { provider: provider.to_owned() },
    };
    let attributes = LogAttributes {
        timestamp,
        message,
        level: level.to_owned(),
        instance: machine.to_owned(),
        region: region.to_owned(),
        meta,
    };
    LogEntry { id: format!("{machine}-{}", attributes.timestamp), attributes }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    fn read(dir: &Path, token: &str) -> (Vec<String>, String) {
        let mut next = Token::default();
        let entries =
            machine_entries("m", dir, "lcl", &Token::parse(token), &mut next, PAGE_BYTES_MAX);
        (entries.into_iter().map(|entry| entry.attributes.message).collect(), next.text())
    }

    #[test]
    fn a_line_that_is_written_late_is_given_all_the_same() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut log = File::options().create(true).append(true).open(dir.path().join("log"))?;
        writeln!(log, "2026-01-02T00:00:02.000000Z stdout second")?;
        let (lines, token) = read(dir.path(), "");
        assert_eq!(lines, ["second"]);
        assert_eq!(read(dir.path(), &token), (Vec::new(), token.clone()));
        writeln!(log, "2026-01-02T00:00:01.000000Z stdout first, but late")?;
        assert_eq!(read(dir.path(), &token).0, ["first, but late"]);
        Ok(())
    }

    #[test]
    fn a_machine_that_begins_to_write_later_is_read_from_its_first_line() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (lines, token) = read(dir.path(), "");
        assert!(lines.is_empty());
        let text: String = (0..=LINES_MAX).map(|number| format!("t stdout {number}\n")).collect();
        std::fs::write(dir.path().join("log"), text)?;
        let (lines, token) = read(dir.path(), &token);
        assert_eq!((lines.len(), lines[0].as_str()), (LINES_MAX, "0"));
        assert_eq!(read(dir.path(), &token).0, [LINES_MAX.to_string()]);
        Ok(())
    }

    #[test]
    fn a_token_says_what_it_said_and_a_stranger_says_nothing() {
        let place = Place { file: u64::MAX, offset: 10, base: 8 << 20 };
        let mark = Some(Mark { series: 3, read: 17 });
        let machines = BTreeMap::from([("148e".to_owned(), place), ("d891".to_owned(), place)]);
        for platform in [mark, None] {
            let token = Token { first: false, platform, machines: machines.clone() };
            assert_eq!(Token::parse(&token.text()), token);
        }
        let old = Token::parse("v2.0.0~148e.ff.a");
        assert_eq!(old.machines["148e"], Place { file: 255, offset: 10, base: u64::MAX });
        for stranger in ["", "2026-01-02T03:04:05.678901Z|2", "v2.", "v2.1.1~m", "v2.1.1~m.x.1"] {
            assert_eq!(Token::parse(stranger), Token { first: true, ..Token::default() });
        }
    }
}
