//! Values as Go's `fmt` prints them: what becomes of numbers, lists and tables in `[env]`.

use super::tree::{Map, Node};

/// Prints a value as `fmt.Sprint` does: `true`, `1e+06`, `[1 2]`, `map[a:1]`.
pub(crate) fn print(node: &Node) -> String {
    match node {
        Node::Null => "<nil>".to_owned(),
        Node::Bool(flag) => flag.to_string(),
        Node::Integer(number) => number.to_string(),
        Node::Float(number) => print_float(*number),
        Node::Text(text) => text.clone(),
        Node::Time(time) => print_time(time),
        Node::List(items) => {
            let items: Vec<_> = items.iter().map(|item| print(&item.node)).collect();
            format!("[{}]", items.join(" "))
        }
        Node::Table(map) => format!("map[{}]", print_map(map)),
    }
}

fn print_map(map: &Map) -> String {
    let mut entries: Vec<_> =
        map.0.iter().map(|entry| format!("{}:{}", entry.key, print(&entry.value.node))).collect();
    entries.sort();
    entries.join(" ")
}

/// Shortest digits, with an exponent below -4 and from six on, as `%g` has it.
fn print_float(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return number.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// An offset date-time in UTC is printed in Go's own form; local ones as written.
fn print_time(time: &str) -> String {
    match time.strip_suffix('Z') {
        Some(utc) => format!("{} +0000 UTC", utc.replacen('T', " ", 1)),
        None => time.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flytoml::tree::{Tree, parse_toml};

    #[test]
    fn numbers_lists_and_tables_are_printed_as_go_does() {
        let map = parse_toml(
            "a = 1_000\nb = 0xFF\nc = 1.5\nd = 1e21\ne = 1000000.0\nf = inf\ng = [1, 2]\n\
             h = {b = 1, a = true}\ni = 1979-05-27T07:32:00Z",
        )
        .expect("the text is TOML");
        let printed: Vec<_> = map.0.iter().map(|entry| print(&entry.value.node)).collect();
        assert_eq!(
            printed,
            [
                "1000",
                "255",
                "1.5",
                "1e+21",
                "1e+06",
                "+Inf",
                "[1 2]",
                "map[a:true b:1]",
                "1979-05-27 07:32:00 +0000 UTC"
            ]
        );
        assert_eq!(print(&Tree::text("x", None).node), "x");
    }
}
