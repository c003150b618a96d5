//! The older and looser spellings that flyctl still accepts, turned into today's form on the untyped
//! tree (fly-toml-compat section 4). Each works only in the sections named there; the same looseness
//! elsewhere is an error of type.

use super::duration::GoDuration;
use super::gotext;
use super::problem::Problems;
use super::tree::{Dialect, Entry, Map, MapBuilder, Node, Span, Tree};

const CHECK_DURATIONS: [&str; 3] = ["interval", "timeout", "grace_period"];
const MILLISECOND: i64 = 1_000_000;
const SECOND: i64 = 1_000_000_000;

/// Applies all spellings in flyctl's order; what cannot be understood becomes a problem.
pub(crate) fn patch(map: &mut Map, dialect: Dialect, problems: &mut Problems<'_>) {
    let mut patcher = Patcher { dialect, problems };
    patcher.env(map);
    patcher.services(map);
    patcher.processes(map);
    patcher.experimental(map);
    patcher.checks(map);
    patcher.merge(map, &["compute", "computes", "vm"], "vm");
    each_table(map, "vm", "vm", |vm, _| to_text(vm, "memory"));
    patcher.merge(map, &["mount", "mounts"], "mounts");
    each_table(map, "mounts", "mounts", |mount, _| to_text(mount, "initial_size"));
    patcher.merge(map, &["metric", "metrics"], "metrics");
    patcher.duration(map, "kill_timeout", SECOND);
    patcher.build(map);
    patcher.refuse_endless_numbers(map);
}

struct Patcher<'p, 'a> {
    dialect: Dialect,
    problems: &'p mut Problems<'a>,
}

impl Patcher<'_, '_> {
    fn error(&mut self, key: &str, span: &Span, text: impl Into<String>, form: &str) {
        self.problems.shape(key, span, text.into(), Some(format!("write {form}")));
    }

    fn env(&mut self, map: &mut Map) {
        let Some(env) = map.get_mut("env") else { return };
        let span = env.span.clone();
        let mut merged = MapBuilder::default();
        let fine = collect_env(std::mem::replace(&mut env.node, Node::Null), &mut merged);
        env.node = Node::Table(merged.build());
        if !fine {
            self.error("env", &span, "must be a table of variables", "[env]");
        }
    }

    fn services(&mut self, map: &mut Map) {
        self.merge(map, &["services"], "services");
        let Some(Tree { node: Node::List(services), .. }) = map.get_mut("services") else { return };
        for (index, service) in services.iter_mut().enumerate() {
            if let Node::Table(service) = &mut service.node {
                self.service(service, &format!("services[{index}]"));
            }
        }
        // A service that says nothing is none.
        services.retain(|service| service.as_table().is_some_and(|table| !table.0.is_empty()));
    }

    fn service(&mut self, service: &mut Map, path: &str) {
        self.concurrency(service, path);
        if self.one_to_list(service, "ports", path) {
            each_table(service, "ports", &format!("{path}.ports"), |port, path| {
                self.port_number(port, "port", path);
            });
        }
        for kind in ["tcp_checks", "http_checks"] {
            self.one_to_list(service, kind, path);
            each_table(service, kind, &format!("{path}.{kind}"), |check, path| {
                self.check(check, path);
            });
            if service.get(kind).is_some_and(is_empty_list) {
                service.remove(kind);
            }
        }
        self.port_number(service, "internal_port", path);
    }

    /// `concurrency = "20,25"` is soft and hard limit of requests.
    fn concurrency(&mut self, service: &mut Map, path: &str) {
        const FORM: &str = "[services.concurrency] with type, soft_limit and hard_limit";
        let Some(value) = service.get_mut("concurrency") else { return };
        let span = value.span.clone();
        let text = match &value.node {
            Node::Table(_) => return,
            Node::Text(text) => match limits(text) {
                Some((soft, hard)) => {
                    *value = limits_table(soft, hard, &span);
                    return;
                }
                None => format!("unknown value '{text}' for concurrency limits"),
            },
            _ => format!("must be a table, found {}", value.kind()),
        };
        value.node = Node::Null;
        self.error(&format!("{path}.concurrency"), &span, text, FORM);
    }

    /// Numbers in durations are milliseconds here (T-20), and headers may be a list of names and
    /// values.
    fn check(&mut self, check: &mut Map, path: &str) {
        for key in CHECK_DURATIONS {
            self.duration(check, key, MILLISECOND);
        }
        self.headers(check, path);
    }

    /// A number becomes text; what is neither number nor text counts as not set. flyctl overlooks the
    /// integers of its YAML parser, so they are not set either.
    fn duration(&mut self, map: &mut Map, key: &str, unit: i64) {
        let Some(value) = map.get_mut(key) else { return };
        value.node = match &value.node {
            Node::Integer(number) if self.dialect != Dialect::Yaml => {
                Node::Text(GoDuration::from_nanos(number.wrapping_mul(unit)).to_string())
            }
            Node::Float(number) => Node::Text(GoDuration::scaled(*number, unit).to_string()),
            Node::Text(text) if !text.is_empty() => return,
            _ => Node::Null,
        };
    }

    fn headers(&mut self, check: &mut Map, path: &str) {
        const FORM: &str = "headers = { Accept = \"text/html\" }";
        let Some(headers) = check.get_mut("headers") else { return };
        let span = headers.span.clone();
        let table = match std::mem::replace(&mut headers.node, Node::Null) {
            Node::Table(table) => Some(table),
            Node::List(items) => {
                items.into_iter().map(named_header).collect::<Option<_>>().map(Map)
            }
            _ => None,
        };
        match table {
            Some(table) if table.0.is_empty() => drop(check.remove("headers")),
            Some(mut table) => {
                table.0.iter_mut().for_each(|entry| print_value(&mut entry.value));
                headers.node = Node::Table(table);
            }
            None => {
                let text = "must be a table, or a list of tables with name and value";
                self.error(&format!("{path}.headers"), &span, text, FORM);
            }
        }
    }

    /// A list of names and commands becomes a table; what yields no group is dropped.
    fn processes(&mut self, map: &mut Map) {
        let Some(value) = map.get_mut("processes") else { return };
        let span = value.span.clone();
        match std::mem::replace(&mut value.node, Node::Null) {
            Node::Table(table) => value.node = Node::Table(table),
            Node::List(items) => {
                let mut groups = Map::default();
                items.into_iter().filter_map(named_command).for_each(|entry| groups.put(entry));
                match groups.0.is_empty() {
                    true => drop(map.remove("processes")),
                    false => value.node = Node::Table(groups),
                }
            }
            _ => {
                let text = "must be a table of groups and commands";
                self.error("processes", &span, text, "[processes] and web = \"run web\" below it");
            }
        }
    }

    fn experimental(&mut self, map: &mut Map) {
        let Some(value) = map.get_mut("experimental") else { return };
        let span = value.span.clone();
        let Node::Table(table) = &mut value.node else {
            value.node = Node::Null;
            self.error("experimental", &span, "must be one table", "[experimental]");
            return;
        };
        for key in ["cmd", "entrypoint", "exec"] {
            self.words(table, key);
        }
        let found = |key: &str| table.get(key).cloned();
        let (timeout, port, path) =
            (found("kill_timeout"), found("metrics_port"), found("metrics_path"));
        if table.0.is_empty() {
            map.remove("experimental");
        }
        if let Some(timeout) = timeout
            && map.get("kill_timeout").is_none()
        {
            map.put(made("kill_timeout", timeout));
        }
        let metrics = [port.map(|v| made("port", v)), path.map(|v| made("path", v))];
        let metrics: Vec<_> = metrics.into_iter().flatten().collect();
        if map.get("metrics").is_none() && !metrics.is_empty() {
            map.put(made("metrics", Tree::table(Map(metrics), span)));
        }
    }

    /// One text is a list of one; it is not split into words.
    fn words(&mut self, table: &mut Map, key: &str) {
        let Some(value) = table.get_mut(key) else { return };
        let span = value.span.clone();
        let fine = match &value.node {
            Node::Null => true,
            Node::Text(_) => {
                *value = Tree::list(vec![value.clone()], span.clone());
                true
            }
            Node::List(items) => items.iter().all(|item| matches!(item.node, Node::Text(_))),
            _ => false,
        };
        if !fine {
            value.node = Node::Null;
            let form = format!("{key} = [\"…\"]");
            self.error(&format!("experimental.{key}"), &span, "must be a list of strings", &form);
        }
    }

    /// Top-level checks may be a list whose items carry a name.
    fn checks(&mut self, map: &mut Map) {
        let Some(value) = map.get_mut("checks") else { return };
        let span = value.span.clone();
        let table = match std::mem::replace(&mut value.node, Node::Null) {
            Node::Table(table) => Ok(table),
            Node::List(items) => named_checks(items),
            _ => Err("must be a table of checks"),
        };
        let mut table = match table {
            Ok(table) => table,
            Err(text) => return self.error("checks", &span, text, "[checks.NAME]"),
        };
        for entry in &mut table.0 {
            let key = format!("checks.{}", entry.key);
            match &mut entry.value.node {
                Node::Table(check) => self.check(check, &key),
                _ => {
                    let span = entry.key_span.clone().or(entry.value.span.clone());
                    entry.value.node = Node::Table(Map::default());
                    let text = "is a check, and a check must be a table";
                    self.error(&key, &span, text, "[checks.NAME] above its keys");
                }
            }
        }
        match table.0.is_empty() {
            true => drop(map.remove("checks")),
            false => value.node = Node::Table(table),
        }
    }

    fn build(&mut self, map: &mut Map) {
        let Some(value) = map.get_mut("build") else { return };
        let span = value.span.clone();
        let Node::Table(table) = &mut value.node else {
            value.node = Node::Null;
            self.error("build", &span, "must be one table", "[build]");
            return;
        };
        if let Some(mut entry) = table.remove("build_target") {
            entry.key = "build-target".to_owned();
            table.put(entry);
        }
        if table.0.is_empty() {
            map.remove("build");
        }
    }

    /// Collects tables and lists of tables under several names into one list under one name.
    fn merge(&mut self, map: &mut Map, names: &[&str], into: &str) {
        let mut items = Vec::new();
        let (mut span, mut found) = (None, false);
        for name in names {
            let Some(entry) = map.remove(name) else { continue };
            found = true;
            span = span.or(entry.value.span.clone()).or(entry.key_span);
            let kind = entry.value.kind();
            match entry.value.node {
                Node::Table(_) => items.push(entry.value),
                Node::List(list) if list.iter().all(|item| item.as_table().is_some()) => {
                    items.extend(list);
                }
                _ => {
                    let text = format!("must be a table or a list of tables, found {kind}");
                    self.error(name, &span, text, &format!("[[{into}]]"));
                }
            }
        }
        // Also where nothing is left, so that a name in another letter case counts for nothing.
        if found || into != "services" {
            map.put(made(into, Tree::list(items, span)));
        }
    }

    /// A single table where a list is wanted becomes a list of one; answers whether there is a list.
    fn one_to_list(&mut self, map: &mut Map, key: &str, path: &str) -> bool {
        let Some(value) = map.get_mut(key) else { return false };
        if value.as_table().is_some() {
            *value = Tree::list(vec![value.clone()], value.span.clone());
        }
        let fine = matches!(&value.node, Node::List(items)
            if items.iter().all(|item| item.as_table().is_some()));
        if !fine {
            let text = format!("must be a list of tables, found {}", value.kind());
            let span = value.span.clone();
            map.remove(key);
            self.error(&format!("{path}.{key}"), &span, text, &format!("[[services.{key}]]"));
        }
        fine
    }

    /// `"8080"` becomes 8080, and a fraction is cut off; only in services (T-25).
    fn port_number(&mut self, map: &mut Map, key: &str, path: &str) {
        let Some(value) = map.get_mut(key) else { return };
        let number = match &value.node {
            Node::Integer(number) => Some(*number),
            // Go turns it into a signed integer whatever it is.
            Node::Unsigned(number) => Some(*number as i64),
            Node::Float(number) => Some(super::duration::go_integer(*number)),
            Node::Text(text) => text.parse().ok(),
            _ => None,
        };
        match number {
            Some(number) => value.node = Node::Integer(number),
            None => {
                let text = format!("can not convert '{}' to a port", gotext::print(&value.node));
                let span = value.span.clone();
                map.remove(key);
                self.error(&format!("{path}.{key}"), &span, text, &format!("{key} = 8080"));
            }
        }
    }

    /// Between patching and decoding flyctl writes JSON, which has no endless numbers.
    fn refuse_endless_numbers(&mut self, map: &Map) {
        for entry in &map.0 {
            if let Some(span) = endless(&entry.value) {
                let text = "holds a number that is endless or no number";
                self.error(&entry.key, span, text, "a plain number");
            }
        }
    }
}

/// Tables of variables, also in lists; later ones win, and every value becomes text.
fn collect_env(node: Node, env: &mut MapBuilder) -> bool {
    match node {
        Node::Table(table) => {
            for mut entry in table.0 {
                print_value(&mut entry.value);
                env.put(entry);
            }
            true
        }
        Node::List(items) => items.into_iter().all(|item| collect_env(item.node, env)),
        _ => false,
    }
}

fn endless(tree: &Tree) -> Option<&Span> {
    match &tree.node {
        Node::Float(number) if !number.is_finite() => Some(&tree.span),
        Node::List(items) => items.iter().find_map(endless),
        Node::Table(map) => map.0.iter().find_map(|entry| endless(&entry.value)),
        _ => None,
    }
}

fn is_empty_list(value: &Tree) -> bool {
    matches!(&value.node, Node::List(items) if items.is_empty())
}

fn limits(text: &str) -> Option<(i64, i64)> {
    let (soft, hard) = text.split_once(',')?;
    Some((soft.parse().ok()?, hard.parse().ok()?))
}

fn limits_table(soft: i64, hard: i64, span: &Span) -> Tree {
    let entry = |key: &str, value| Entry { key: key.into(), key_span: span.clone(), value };
    let entries = vec![
        entry("type", Tree::text("requests", span.clone())),
        entry("soft_limit", Tree::integer(soft, span.clone())),
        entry("hard_limit", Tree::integer(hard, span.clone())),
    ];
    Tree::table(Map(entries), span.clone())
}

fn named_header(item: Tree) -> Option<Entry> {
    let mut table = item.into_table()?;
    let name = table.remove("name")?;
    let value = table.remove("value").map_or(Tree::text("", None), |entry| entry.value);
    Some(Entry { key: gotext::print(&name.value.node), key_span: name.key_span, value })
}

fn named_command(item: Tree) -> Option<Entry> {
    let mut table = item.into_table()?;
    let name = table.remove("name")?;
    let mut value = table.remove("command").map_or(Tree::text("", None), |entry| entry.value);
    print_value(&mut value);
    Some(Entry { key: gotext::print(&name.value.node), key_span: name.key_span, value })
}

fn named_checks(items: Vec<Tree>) -> Result<Map, &'static str> {
    let mut checks = Map::default();
    for item in items {
        let span = item.span.clone();
        let table = item.into_table().ok_or("each check must be a table")?;
        let Some(Tree { node: Node::Text(name), .. }) = table.get("name") else {
            return Err("each check needs a name");
        };
        let (key, key_span) = (name.clone(), span.clone());
        checks.put(Entry { key, key_span, value: Tree::table(table, span) });
    }
    Ok(checks)
}

/// Whatever it is becomes text, as Go prints it.
fn to_text(map: &mut Map, key: &str) {
    if let Some(value) = map.get_mut(key) {
        print_value(value);
    }
}

fn print_value(value: &mut Tree) {
    value.node = Node::Text(gotext::print(&value.node));
}

fn each_table(map: &mut Map, key: &str, path: &str, mut act: impl FnMut(&mut Map, &str)) {
    let Some(Tree { node: Node::List(items), .. }) = map.get_mut(key) else { return };
    for (index, item) in items.iter_mut().enumerate() {
        if let Node::Table(table) = &mut item.node {
            act(table, &format!("{path}[{index}]"));
        }
    }
}

fn made(key: &str, value: Tree) -> Entry {
    Entry { key: key.to_owned(), key_span: value.span.clone(), value }
}
