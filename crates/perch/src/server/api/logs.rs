//! Log reading: the Machines' own lines and the platform's, merged by time.
//!
//! A page token is the time of the last line that was given and how many lines of that very
//! microsecond were given: `2026-01-02T03:04:05.678901Z|2`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use perch_api::wire::{
    ApiError, LogAttributes, LogEntry, LogEvent, LogMeta, LogPage, LogPageMeta, LogQuery,
};
use perch_machine::logs::LogReader;

use crate::server::world::World;

/// Lines of one Machine that a page looks at. What is older stays in the files.
const LINES_MAX: usize = 10_000;
/// How often a held request looks for new lines. Files tell nobody that they grew.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Where a page begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Token {
    timestamp: String,
    given: usize,
}

impl Token {
    fn parse(text: &str) -> Self {
        let (timestamp, given) = text.rsplit_once('|').unwrap_or((text, "0"));
        Self { timestamp: timestamp.to_owned(), given: given.parse().unwrap_or(0) }
    }

    fn after(entries: &[LogEntry]) -> Option<Self> {
        let timestamp = &entries.last()?.attributes.timestamp;
        let given =
            entries.iter().rev().take_while(|it| it.attributes.timestamp == *timestamp).count();
        Some(Self { timestamp: timestamp.clone(), given })
    }

    fn text(&self) -> String {
        format!("{}|{}", self.timestamp, self.given)
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
    let all = entries(world, app, query);
    let mut same = token.given;
    let newer = all.into_iter().filter(|entry| {
        let timestamp = &entry.attributes.timestamp;
        if *timestamp == token.timestamp && 0 < same {
            same -= 1;
            return false;
        }
        token.timestamp <= *timestamp
    });
    let data: Vec<LogEntry> = newer.collect();
    let next = next_token(&data, token);
    LogPage { data, meta: LogPageMeta { next_token: next } }
}

/// Lines of the same microsecond that came with the former page count on.
fn next_token(data: &[LogEntry], before: &Token) -> String {
    let Some(mut token) = Token::after(data) else { return before.text() };
    if token.timestamp == before.timestamp {
        token.given += before.given;
    }
    token.text()
}

/// All lines that are wanted, oldest first.
fn entries(world: &World, app: &str, query: &LogQuery) -> Vec<LogEntry> {
    let region = &world.config.region;
    if query.region.as_ref().is_some_and(|wanted| wanted != region) {
        return Vec::new();
    }
    let wanted = |machine: &str| query.instance.as_deref().is_none_or(|only| only == machine);
    let mut entries: Vec<LogEntry> = Vec::new();
    for (id, dir) in machine_dirs(world, app) {
        if wanted(&id) {
            entries.extend(machine_entries(&id, &dir, region));
        }
    }
    for line in world.platform_log.of(app).into_iter().filter(|line| wanted(&line.machine)) {
        entries.push(entry(
            line.timestamp,
            line.text,
            &line.level,
            &line.machine,
            region,
            line.provider,
        ));
    }
    entries.sort_by(|a, b| a.attributes.timestamp.cmp(&b.attributes.timestamp));
    entries
}

fn machine_dirs(world: &World, app: &str) -> Vec<(String, PathBuf)> {
    let catalog = world.keeper.read();
    catalog.machines_of(app).map(|it| (it.id.clone(), world.paths.machine(&it.id))).collect()
}

fn machine_entries(id: &str, dir: &std::path::Path, region: &str) -> Vec<LogEntry> {
    // A Machine that never wrote has no log.
    let lines = LogReader::from_tail(dir, LINES_MAX).and_then(|mut reader| reader.read(LINES_MAX));
    let lines = lines.unwrap_or_default();
    let made =
        lines.into_iter().map(|line| entry(line.timestamp, line.text, "info", id, region, "app"));
    made.collect()
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
    use super::*;

    fn at(timestamp: &str) -> LogEntry {
        entry(timestamp.to_owned(), "x".to_owned(), "info", "m", "lcl", "app")
    }

    #[test]
    fn a_token_counts_the_lines_of_its_last_microsecond() {
        let data = [at("1"), at("2"), at("2")];
        assert_eq!(next_token(&data, &Token::default()), "2|2");
        assert_eq!(next_token(&[at("2")], &Token::parse("2|2")), "2|3");
        assert_eq!(next_token(&[], &Token::parse("2|2")), "2|2");
    }

    #[test]
    fn a_stranger_as_token_begins_at_its_place_in_time() {
        assert_eq!(Token::parse("2026"), Token { timestamp: "2026".to_owned(), given: 0 });
    }
}
