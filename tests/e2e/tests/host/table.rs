//! Checks the blueprint's own table of addresses.

use anyhow::{Context, Result, ensure};

const HEADER: [&str; 5] = ["VERSION", "IP", "TYPE", "REGION", "CREATED AT"];

/// Rows of `fly ips list`, checked for the form that the blueprint prints: cells padded to the
/// widest of their column, joined by one TAB, the last column unpadded, no title, no closing line.
pub(crate) fn rows(text: &str) -> Result<Vec<Vec<String>>> {
    let lines: Vec<&str> = text.lines().collect();
    let cells = |line: &str| -> Vec<String> { line.split('\t').map(str::to_owned).collect() };
    let table: Vec<Vec<String>> = lines.iter().map(|line| cells(line)).collect();
    for row in &table {
        ensure!(row.len() == HEADER.len(), "a row has {} cells: {text:?}", row.len());
    }
    check_padding(&table, text)?;
    let trimmed = |row: &Vec<String>| row.iter().map(|cell| cell.trim_end().to_owned()).collect();
    let mut rows: Vec<Vec<String>> = table.iter().map(trimmed).collect();
    ensure!(!rows.is_empty() && rows[0] == HEADER, "not the header: {text:?}");
    rows.remove(0);
    for row in &rows {
        check_time(&row[4]).with_context(|| format!("in {text:?}"))?;
    }
    Ok(rows)
}

fn check_padding(table: &[Vec<String>], text: &str) -> Result<()> {
    for column in 0..HEADER.len() - 1 {
        let widest = table.iter().map(|row| row[column].trim_end().len()).max().unwrap_or_default();
        let padded = table.iter().all(|row| row[column].len() == widest);
        ensure!(padded, "column {} is not padded to {widest}: {text:?}", HEADER[column]);
    }
    let bare = table.iter().all(|row| row[4].trim_end() == row[4]);
    ensure!(bare, "the last column is padded: {text:?}");
    Ok(())
}

/// `Sep 1 2023 19:47`, or a relative time as flyctl prints it for the first day.
fn check_time(text: &str) -> Result<()> {
    let words: Vec<&str> = text.split(' ').collect();
    let date = words.len() == 4 && words[0].len() == 3 && words[3].contains(':');
    ensure!(date || text.ends_with(" ago") || text == "just now", "`{text}` is no time");
    Ok(())
}

#[test]
fn the_blueprints_own_example_passes() {
    let example = "VERSION\tIP                  \tTYPE              \tREGION\tCREATED AT\n\
        v6     \t2a09:8280:1::2d:1111\tpublic (dedicated)\tglobal\tSep 1 2023 19:47\n\
        v6     \tfdaa:2:45b:0:1::11  \tprivate           \tglobal\tMar 16 2024 18:20\n\
        v4     \t66.241.124.11       \tpublic (shared)   \t      \tJan 1 0001 00:00\n";
    assert_eq!(rows(example).expect("it is the model").len(), 3);
    assert!(rows(&format!("{example}\n")).is_err());
    assert!(rows(&example.replace("private           ", "private")).is_err());
}
