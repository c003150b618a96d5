//! Tables, JSON and times as flyctl prints them (flyctl-cli section 2), byte for byte.

use crate::console::{Console, Style};
use crate::json::Json;
use jiff::Timestamp;
use serde::Serialize;

const JUST_NOW: i64 = 1;
const MINUTE: i64 = 60;
const HOUR: i64 = 3600;
const DAY: i64 = 86400;

/// A table: cells between one space each, columns joined by a bar, header in capitals if there is one,
/// then an empty line. The title is bold and stands above.
pub(crate) fn table(console: &Console, title: &str, headers: &[&str], rows: &[Vec<String>]) {
    console.text(&table_text(console, title, headers, rows));
}

/// What [`table`] prints.
pub(crate) fn table_text(
    console: &Console,
    title: &str,
    headers: &[&str],
    rows: &[Vec<String>],
) -> String {
    let headers: Vec<_> = headers.iter().map(|header| header.to_uppercase()).collect();
    let rows: Vec<_> = rows.iter().flat_map(|row| physical(row)).collect();
    let widths = widths(&headers, &rows);
    let header = Some(&headers).filter(|headers| !headers.is_empty());
    let lines = header.into_iter().chain(&rows).map(|row| format!("{}\n", line(row, &widths)));
    format!("{}{}\n", title_text(console, title), lines.collect::<String>())
}

/// A [`table`] with these columns flush right.
pub(crate) fn table_with_numbers(
    console: &Console,
    title: &str,
    headers: &[&str],
    rows: &[Vec<String>],
    numbers: &[usize],
) {
    // Stands for a space that is not trimmed, until the table is made.
    const SPACE: &str = "\u{1}";
    let columns: Vec<String> = headers.iter().map(|header| (*header).to_owned()).collect();
    let widths = widths(&columns, rows);
    let flush = |(column, cell): (usize, &String)| match numbers.contains(&column) {
        true => SPACE.repeat(widths[column].saturating_sub(width(cell))) + cell,
        false => cell.clone(),
    };
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().enumerate().map(flush).collect()).collect();
    console.text(&table_text(console, title, headers, &rows).replace(SPACE, " "));
}

/// A row whose cells have several lines is as many lines high.
fn physical(row: &[String]) -> Vec<Vec<String>> {
    let cells: Vec<Vec<&str>> = row.iter().map(|cell| cell.trim().split('\n').collect()).collect();
    let height = cells.iter().map(Vec::len).max().unwrap_or(1);
    let part = |cell: &Vec<&str>, at: usize| cell.get(at).copied().unwrap_or_default().to_owned();
    (0..height).map(|at| cells.iter().map(|cell| part(cell, at)).collect()).collect()
}

/// A table whose header is underlined when there are rows; no empty line after it.
pub(crate) fn simple_table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let headers: Vec<_> = headers.iter().map(|header| header.to_uppercase()).collect();
    let rows: Vec<_> = rows.iter().flat_map(|row| physical(row)).collect();
    let widths = widths(&headers, &rows);
    let mut lines = vec![line(&headers, &widths)];
    if !rows.is_empty() {
        let rules = widths.iter().map(|width| "─".repeat(width + 2));
        lines.push(rules.collect::<Vec<_>>().join("┼"));
    }
    lines.extend(rows.iter().map(|row| line(row, &widths)));
    lines.join("\n")
}

/// A table in a box: header centred and underlined if there are rows.
pub(crate) fn boxed_table(console: &Console, headers: &[&str], rows: &[Vec<String>]) {
    let headers: Vec<_> = headers.iter().map(|header| header.to_uppercase()).collect();
    let rows: Vec<_> = rows.iter().flat_map(|row| physical(row)).collect();
    let widths = widths(&headers, &rows);
    let rule = |left: &str, joint: &str, right: &str| {
        let lines = widths.iter().map(|width| "─".repeat(width + 2));
        console.line(format!("{left}{}{right}", lines.collect::<Vec<_>>().join(joint)));
    };
    rule("┌", "┬", "┐");
    let centred: Vec<_> = headers.iter().zip(&widths).map(|(it, to)| centred(it, *to)).collect();
    console.line(format!("│{}│", centred.join("│")));
    if !rows.is_empty() {
        rule("├", "┼", "┤");
    }
    rows.iter().for_each(|row| console.line(format!("│{}│", line(row, &widths))));
    rule("└", "┴", "┘");
}

/// One object: a label and a value per line, then an empty line.
pub(crate) fn vertical_table(console: &Console, title: &str, fields: &[(&str, String)]) {
    console.text(&title_text(console, title));
    let rows: Vec<Vec<String>> =
        fields.iter().map(|(label, value)| vec![(*label).to_owned(), value.clone()]).collect();
    let widths = widths(&[], &rows);
    rows.iter().for_each(|row| console.line(line(row, &widths)));
    console.line("");
}

/// The table of `ips list` as the blueprint prints it: cells padded to the widest, joined by one TAB,
/// the last column unpadded, nothing before or after.
pub(crate) fn tab_table(console: &Console, headers: &[&str], rows: &[Vec<String>]) {
    let headers: Vec<_> = headers.iter().map(|header| (*header).to_owned()).collect();
    let widths = widths(&headers, rows);
    for row in std::iter::once(&headers).chain(rows) {
        let last = row.len().saturating_sub(1);
        let cells = row.iter().enumerate().map(|(column, cell)| match column == last {
            true => cell.clone(),
            false => padded(cell, widths[column]),
        });
        console.line(cells.collect::<Vec<_>>().join("\t"));
    }
}

/// JSON as Go's encoder writes it: indented by four spaces, with `<`, `>` and `&` escaped.
pub(crate) fn json(console: &Console, value: &impl Serialize) -> serde_json::Result<()> {
    console.line(Json::of(value)?.pretty("    "));
    Ok(())
}

/// How long ago, or the date when that is more than a day: `just now`, `42s ago`, `3m7s ago`,
/// `5h12m ago`, `Mar 16 2024 18:20`. A text that is no time is printed as it is.
pub(crate) fn relative_time(time: &str, now: Timestamp) -> String {
    let Ok(then) = time.parse::<Timestamp>() else { return time.to_owned() };
    let passed = now.duration_since(then);
    let (length, suffix) = match passed.is_negative() {
        true => (-passed.as_secs(), ""),
        false => (passed.as_secs(), " ago"),
    };
    match length {
        0..JUST_NOW if !passed.is_negative() => "just now".to_owned(),
        0..JUST_NOW => "0s".to_owned(),
        JUST_NOW..MINUTE => format!("{length}s{suffix}"),
        MINUTE..HOUR => format!("{}m{}s{suffix}", length / MINUTE, length % MINUTE),
        HOUR..DAY => format!("{}h{}m{suffix}", length / HOUR, length % HOUR / MINUTE),
        _ => date(time),
    }
}

/// How long ago in words, as go-humanize has them: `now`, `1 minute ago`, `3 weeks ago`.
pub(crate) fn humanized_time(time: &str, now: Timestamp) -> String {
    const WEEK: i64 = 7 * DAY;
    const MONTH: i64 = 30 * DAY;
    const YEAR: i64 = 12 * MONTH;
    let Ok(then) = time.parse::<Timestamp>() else { return time.to_owned() };
    let seconds = now.duration_since(then).as_secs();
    let length = seconds.abs();
    let (unit, word) = match length {
        0 => return "now".to_owned(),
        1..MINUTE => (1, "second"),
        MINUTE..HOUR => (MINUTE, "minute"),
        HOUR..DAY => (HOUR, "hour"),
        DAY..WEEK => (DAY, "day"),
        WEEK..MONTH => (WEEK, "week"),
        MONTH..YEAR => (MONTH, "month"),
        _ => (YEAR, "year"),
    };
    let count = length / unit;
    let plural = if count == 1 { "" } else { "s" };
    let side = if seconds < 0 { "from now" } else { "ago" };
    format!("{count} {word}{plural} {side}")
}

/// `16 Mar 24 18:20 UTC`.
pub(crate) fn rfc822(time: &str) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => time.strftime("%d %b %y %H:%M UTC").to_string(),
        Err(_) => time.to_owned(),
    }
}

/// `1.0 GiB`, `648 KiB`, as go-humanize has them.
pub(crate) fn binary_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let power = bytes.ilog2() / 10;
    let value = (bytes as f64 / 2_f64.powi(10 * power as i32) * 10.0 + 0.5).floor() / 10.0;
    let unit = UNITS[power as usize];
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// `Mar 16 2024 18:20`, in UTC; the zero time is `Jan 1 0001 00:00`.
pub(crate) fn date(time: &str) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => time.strftime("%b %-d %Y %H:%M").to_string(),
        Err(_) => time.to_owned(),
    }
}

/// Now, in RFC 3339 with seconds.
pub(crate) fn now_rfc3339() -> String {
    rfc3339(Timestamp::now())
}

/// A time in RFC 3339 with seconds.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `54 MB`: thousands, not 1024, as registries count.
pub(crate) fn decimal_size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1_000)),
        1_000_000..1_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// The beginning of a text that fits into so many columns.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    let mut left = columns;
    let fits = |c: &char| {
        let width = char_width(*c);
        let fits = width <= left;
        left = left.saturating_sub(width);
        fits
    };
    text.chars().take_while(fits).collect()
}

/// Titles are bold on terminals.
fn title_text(console: &Console, title: &str) -> String {
    match title {
        "" => String::new(),
        title => format!("{}\n", console.paint(Style::Bold, title)),
    }
}

fn widths(headers: &[String], rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).chain([headers.len()]).max().unwrap_or(0);
    let cells =
        |column: usize| rows.iter().map(move |row| row.get(column)).chain([headers.get(column)]);
    (0..columns).map(|c| cells(c).flatten().map(|cell| width(cell)).max().unwrap_or(0)).collect()
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let cell = |(column, width): (usize, &usize)| {
        let text = cells.get(column).map_or("", |cell| cell.trim());
        format!(" {} ", padded(text, *width))
    };
    widths.iter().enumerate().map(cell).collect::<Vec<_>>().join("│")
}

fn padded(text: &str, to: usize) -> String {
    format!("{text}{}", " ".repeat(to.saturating_sub(width(text))))
}

fn centred(text: &str, to: usize) -> String {
    let left = to.saturating_sub(width(text)) / 2;
    format!(" {} ", padded(&format!("{}{text}", " ".repeat(left)), to))
}

/// Columns on a terminal: combining marks take none, East Asian wide characters and emoji two.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

fn char_width(c: char) -> usize {
    match u32::from(c) {
        0x0300..=0x036f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe4f
        | 0xff00..=0xff60
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_and_sizes_are_those_of_go_humanize() {
        let now: Timestamp = "2024-03-17T18:20:00Z".parse().expect("a time");
        for (time, words) in [
            ("2024-03-17T18:20:00Z", "now"),
            ("2024-03-17T18:19:59Z", "1 second ago"),
            ("2024-03-17T18:18:01Z", "1 minute ago"),
            ("2024-03-17T15:20:00Z", "3 hours ago"),
            ("2024-03-15T18:20:00Z", "2 days ago"),
            ("2024-03-10T18:20:00Z", "1 week ago"),
            ("2024-01-10T18:20:00Z", "2 months ago"),
            ("2024-03-17T18:22:00Z", "2 minutes from now"),
        ] {
            assert_eq!(humanized_time(time, now), words, "{time}");
        }
        assert_eq!(rfc822("2024-03-06T08:20:59Z"), "06 Mar 24 08:20 UTC");
        let sizes = [0, 5, 664_000, 1 << 30, (1 << 30) * 12].map(binary_size);
        assert_eq!(sizes, ["0 B", "5 B", "648 KiB", "1.0 GiB", "12 GiB"]);
    }
    use crate::console::tests::captured;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn the_blueprints_table_has_tabs_and_an_unpadded_last_column() {
        let (console, out) = captured();
        let rows = [
            row(&[
                "v6",
                "2a09:8280:1::2d:1111",
                "public (dedicated)",
                "global",
                "Sep 1 2023 19:47",
            ]),
            row(&["v6", "fdaa:2:45b:0:1::11", "private", "global", "Mar 16 2024 18:20"]),
            row(&["v4", "66.241.124.11", "public (shared)", "", "Jan 1 0001 00:00"]),
        ];
        tab_table(&console, &["VERSION", "IP", "TYPE", "REGION", "CREATED AT"], &rows);
        assert_eq!(
            out.text(),
            "VERSION\tIP                  \tTYPE              \tREGION\tCREATED AT\n\
             v6     \t2a09:8280:1::2d:1111\tpublic (dedicated)\tglobal\tSep 1 2023 19:47\n\
             v6     \tfdaa:2:45b:0:1::11  \tprivate           \tglobal\tMar 16 2024 18:20\n\
             v4     \t66.241.124.11       \tpublic (shared)   \t      \tJan 1 0001 00:00\n"
        );
    }

    #[test]
    fn a_table_pads_every_cell_and_ends_with_an_empty_line() {
        let (console, out) = captured();
        table(&console, "", &["Name", "Created At"], &[row(&["a", "b"]), row(&["日本"])]);
        assert_eq!(out.text(), " NAME │ CREATED AT \n a    │ b          \n 日本 │            \n\n");
    }

    #[test]
    fn a_cell_of_several_lines_makes_its_row_as_high() {
        assert_eq!(
            simple_table(&["A", "B"], &[row(&["x", "one\nthree\n"]), row(&["", ""])]),
            " A │ B     \n───┼───────\n x │ one   \n   │ three \n   │       "
        );
    }

    #[test]
    fn a_simple_table_underlines_its_header_only_above_rows() {
        assert_eq!(simple_table(&["A"], &[]), " A ");
        assert_eq!(simple_table(&["A", "B"], &[row(&["x", "y"])]), " A │ B \n───┼───\n x │ y ");
    }

    #[test]
    fn a_boxed_table_has_a_rule_under_its_header_only_above_rows() {
        let boxed = |rows: &[Vec<String>]| {
            let (console, out) = captured();
            boxed_table(&console, &["A", "Role"], rows);
            out.text()
        };
        assert_eq!(boxed(&[]), "┌───┬──────┐\n│ A │ ROLE │\n└───┴──────┘\n");
        assert_eq!(
            boxed(&[row(&["Ann", "x"])]),
            "┌─────┬──────┐\n│  A  │ ROLE │\n├─────┼──────┤\n│ Ann │ x    │\n└─────┴──────┘\n"
        );
    }

    #[test]
    fn json_escapes_as_go_does() {
        let (console, out) = captured();
        json(&console, &serde_json::json!({"a": "<&>", "b": []})).expect("it serializes");
        assert_eq!(out.text(), "{\n    \"a\": \"\\u003c\\u0026\\u003e\",\n    \"b\": []\n}\n");
    }

    #[test]
    fn times_are_relative_for_a_day() {
        let now: Timestamp = "2024-03-17T18:20:00Z".parse().expect("it is a time");
        let at = |time: &str| relative_time(time, now);
        assert_eq!(at("2024-03-17T18:20:00Z"), "just now");
        assert_eq!(at("2024-03-17T18:19:18Z"), "42s ago");
        assert_eq!(at("2024-03-17T18:16:53Z"), "3m7s ago");
        assert_eq!(at("2024-03-17T13:08:00Z"), "5h12m ago");
        assert_eq!(at("2024-03-01T08:05:00Z"), "Mar 1 2024 08:05");
        assert_eq!(at("0001-01-01T00:00:00Z"), "Jan 1 0001 00:00");
        assert_eq!(at("2024-03-17T18:20:10Z"), "10s");
    }
}
