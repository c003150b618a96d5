//! Values as Go prints them: `fmt`'s `%v`, which is what becomes of numbers, lists and tables in
//! `[env]`, and the number literals of `encoding/json`, which decide what an integer key accepts.

use super::tree::{Map, Node};

/// Prints a value as `fmt.Sprint` does: `true`, `1e+06`, `[1 2]`, `map[a:1]`.
pub(crate) fn print(node: &Node) -> String {
    match node {
        Node::Null => "<nil>".to_owned(),
        Node::Bool(flag) => flag.to_string(),
        Node::Integer(number) => number.to_string(),
        Node::Unsigned(number) => number.to_string(),
        Node::Float(number) => print_float(*number),
        Node::Text(text) => text.clone(),
        Node::Time(time) => time.go.clone(),
        Node::List(items) => {
            let items: Vec<_> = items.iter().map(|item| print(&item.node)).collect();
            format!("[{}]", items.join(" "))
        }
        Node::Table(map) => format!("map[{}]", print_map(map)),
    }
}

fn print_map(map: &Map) -> String {
    let mut entries: Vec<_> = map.0.iter().collect();
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    let entries = entries.iter().map(|entry| format!("{}:{}", entry.key, print(&entry.value.node)));
    entries.collect::<Vec<_>>().join(" ")
}

/// Shortest digits, with an exponent below -4 and from six on, as `%v` has it.
fn print_float(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let (digits, exponent) = digits_and_exponent(number);
    if (-4..6).contains(&exponent) {
        return number.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn digits_and_exponent(number: f64) -> (String, i32) {
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    (digits.to_owned(), exponent.parse().unwrap_or(0))
}

/// A number's literal after flyctl wrote it as JSON; none for what is no number.
pub(crate) fn json_number(node: &Node) -> Option<String> {
    match node {
        Node::Integer(number) => Some(number.to_string()),
        Node::Unsigned(number) => Some(number.to_string()),
        Node::Float(number) => Some(json_float(*number)),
        _ => None,
    }
}

/// Plain digits from 1e-6 to 1e21, else an exponent.
fn json_float(number: f64) -> String {
    match number == 0.0 || (1e-6..1e21).contains(&number.abs()) {
        true => number.to_string(),
        false => format!("{number:e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flytoml::tree::{Tree, parse_toml};

    /// Compat section 4, first two rows.
    #[test]
    fn numbers_lists_and_tables_are_printed_as_go_does() {
        let map = parse_toml(
            "a = 1_000\nb = 0xFF\nc = 1.5\nd = 1e21\ne = 1000000.0\nf = inf\ng = [1, 2]\n\
             h = {b = 1, a = true}\ni = 1979-05-27T07:32:00Z\nj = 1979-05-27 07:32:00.50\n\
             k = 1979-05-27\nl = 07:32:00\nm = 1979-05-27T00:32:00.120-07:00\nn = 0.00001",
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
                "1979-05-27 07:32:00 +0000 UTC",
                "1979-05-27T07:32:00.50",
                "1979-05-27",
                "07:32:00",
                "1979-05-27 00:32:00.12 -0700 -0700",
                "1e-05"
            ]
        );
        assert_eq!(print(&Tree::text("x", None).node), "x");
    }

    #[test]
    fn a_float_without_a_fraction_is_an_integer_until_it_needs_an_exponent() {
        assert_eq!(json_number(&Node::Float(8080.0)).as_deref(), Some("8080"));
        assert_eq!(json_number(&Node::Float(1e21)).as_deref(), Some("1e21"));
        assert_eq!(json_number(&Node::Bool(true)), None);
    }
}
