use std::net::Ipv4Addr;
use std::path::Path;

use super::*;
use crate::server::keeper::Change;
use crate::server::records::{AppRecord, MachineRecord, NetworkRecord, tests as records};

const SHARED: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));

/// What callers would find.
#[derive(Default)]
struct FakeBoard {
    at: Mutex<BTreeMap<IpAddr, AtAddress>>,
}

impl Board for FakeBoard {
    fn publish(&self, ip: IpAddr, at: &AtAddress) -> Result<(), NetError> {
        lock(&self.at).insert(ip, at.clone());
        Ok(())
    }

    fn unpublish(&self, ip: IpAddr) -> Result<(), NetError> {
        lock(&self.at).remove(&ip);
        Ok(())
    }
}

impl FakeBoard {
    fn ports(&self, ip: IpAddr) -> Option<Vec<(u16, u16)>> {
        lock(&self.at).get(&ip).map(|at| at.ports.clone())
    }
}

/// A board that notes whether anybody else could decide while it is being told.
struct WatchfulBoard<'a> {
    published: &'a Published,
    alone: Mutex<Vec<bool>>,
}

impl Board for WatchfulBoard<'_> {
    fn publish(&self, ip: IpAddr, _: &AtAddress) -> Result<(), NetError> {
        self.unpublish(ip)
    }

    fn unpublish(&self, _: IpAddr) -> Result<(), NetError> {
        // Whoever is about to decide waits for this lock.
        lock(&self.alone).push(self.published.at.try_lock().is_err());
        Ok(())
    }
}

fn keeper(dir: &Path, changes: Vec<Change>) -> Keeper {
    let keeper = Keeper::in_dir(dir);
    write(&keeper, changes);
    keeper
}

fn write(keeper: &Keeper, changes: Vec<Change>) {
    keeper.write_blocking(|_| Ok((changes, ()))).expect("written");
}

/// An app that has the shared address.
fn sharer(name: &str) -> AppRecord {
    let created_at = String::new();
    let shared = IpRecord { ip: SHARED, kind: IpKind::SharedV4, created_at, caller: None };
    AppRecord { ips: vec![shared], ..records::app(name) }
}

/// A Machine of an app with a service on this port.
fn machine(app: &str, port: u16) -> MachineRecord {
    machine_by("tcp", app, port)
}

fn machine_by(protocol: &str, app: &str, port: u16) -> MachineRecord {
    let service =
        format!(r#"{{"protocol":"{protocol}","internal_port":1,"ports":[{{"port":{port}}}]}}"#);
    let config = format!(r#"{{"image":"x","services":[{service}]}}"#);
    MachineRecord {
        app: app.to_owned(),
        config: serde_json::from_str(&config).expect("a config"),
        ..records::machine(&format!("{app}-{port}"))
    }
}

fn put(app: AppRecord, port: u16) -> Vec<Change> {
    let machine = machine(&app.name, port);
    vec![Change::PutApp(app), Change::PutMachine(Box::new(machine))]
}

#[test]
fn ports_of_both_transports_are_published_apart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let udp = MachineRecord { id: "u".into(), ..machine_by("udp", "a", 53) };
    let more = vec![Change::PutMachine(Box::new(udp))];
    let keeper = keeper(dir.path(), [put(sharer("a"), 80), more].concat());
    let (published, board) = (Published::default(), FakeBoard::default());
    published.settle(&board, &keeper, &[SHARED]);
    assert_eq!(board.ports(SHARED), Some(vec![(80, 80)]));
    let at = lock(&board.at).get(&SHARED).cloned().expect("it is published");
    assert_eq!(at.udp_ports, [(53, 53)]);
}

#[test]
fn the_last_holder_of_the_shared_address_keeps_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let keeper = keeper(dir.path(), [put(sharer("a"), 80), put(sharer("b"), 443)].concat());
    let (published, board) = (Published::default(), FakeBoard::default());
    let settle = || published.settle(&board, &keeper, &[SHARED]);
    settle();
    assert_eq!(board.ports(SHARED), Some(vec![(80, 80), (443, 443)]));

    // On its way out it has nothing any more, although its Machines are still there.
    write(&keeper, vec![Change::PutApp(AppRecord { going: true, ..sharer("a") })]);
    settle();
    assert_eq!(board.ports(SHARED), Some(vec![(443, 443)]));

    write(&keeper, vec![Change::DeleteApp("a".into()), Change::DeleteMachine("a-80".into())]);
    settle();
    assert_eq!(board.ports(SHARED), Some(vec![(443, 443)]));

    write(&keeper, vec![Change::DeleteApp("b".into()), Change::DeleteMachine("b-443".into())]);
    settle();
    assert_eq!(board.ports(SHARED), None);
}

#[test]
fn an_app_that_is_being_destroyed_does_not_come_back_with_the_end_of_its_machines() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let keeper = keeper(dir.path(), put(sharer("a"), 80));
    let (published, board) = (Published::default(), FakeBoard::default());
    write(&keeper, vec![Change::PutApp(AppRecord { going: true, ..sharer("a") })]);
    published.settle(&board, &keeper, &[SHARED]);
    write(&keeper, vec![Change::DeleteMachine("a-80".into())]);
    published.settle(&board, &keeper, &[SHARED]);
    assert_eq!(board.ports(SHARED), None);
}

#[test]
fn an_address_without_machines_answers_pings_only() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let keeper = keeper(dir.path(), vec![Change::PutApp(sharer("a"))]);
    let (published, board) = (Published::default(), FakeBoard::default());
    published.settle(&board, &keeper, &[SHARED]);
    assert_eq!(board.ports(SHARED), Some(Vec::new()));
}

#[test]
fn a_private_address_is_visible_to_the_network_that_may_call_it() {
    let caller = NetworkRecord { id: 7, org: "personal".to_owned(), name: "n".to_owned() };
    let kind = IpKind::PrivateV6;
    let ip = IpRecord { ip: SHARED, kind, created_at: String::new(), caller: Some(caller) };
    assert_eq!(visible(&ip), Visible::Network(Prefix48::of(launching::prefix(7))));
    assert_eq!(visible(&IpRecord { kind: IpKind::V6, caller: None, ..ip }), Visible::Everyone);
}

#[test]
fn nobody_decides_anew_while_the_kernel_is_told_the_last_decision() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let keeper = keeper(dir.path(), put(sharer("a"), 80));
    let published = Published::default();
    let board = WatchfulBoard { published: &published, alone: Mutex::default() };
    published.settle(&board, &keeper, &[SHARED]);
    write(&keeper, vec![Change::DeleteApp("a".into())]);
    published.settle(&board, &keeper, &[SHARED]);
    assert_eq!(*lock(&board.alone), [true, true]);
}

#[test]
fn of_many_addresses_each_gets_its_own() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let keeper = keeper(dir.path(), [put(sharer("a"), 80), put(sharer("b"), 443)].concat());
    let ip = |last: u8| IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
    let own = |last| IpRecord { ip: ip(last), ..sharer("c").ips[0].clone() };
    let ips = vec![own(1), own(2), own(10)];
    write(&keeper, put(AppRecord { ips, ..records::app("c") }, 8080));
    let (published, board) = (Published::default(), FakeBoard::default());
    let (ports, udp_ports) = (Vec::new(), Vec::new());
    lock(&board.at).insert(ip(3), AtAddress { ports, udp_ports, visible: Visible::Everyone });
    // As after a start: what the kernel has, and what the apps have, some of it twice.
    published.settle(&board, &keeper, &[ip(3), ip(2), SHARED, ip(1), ip(2), SHARED]);
    assert_eq!(board.ports(ip(1)), Some(vec![(8080, 8080)]));
    assert_eq!(board.ports(ip(2)), Some(vec![(8080, 8080)]));
    assert_eq!(board.ports(ip(3)), None);
    assert_eq!(board.ports(SHARED), Some(vec![(80, 80), (443, 443), (8080, 8080)]));
}

#[test]
fn overlapping_and_adjacent_ranges_become_one() {
    assert_eq!(merged(vec![(443, 443), (80, 80), (80, 80)]), vec![(80, 80), (443, 443)]);
    assert_eq!(merged(vec![(10, 20), (15, 30), (31, 40)]), vec![(10, 40)]);
    assert_eq!(merged(vec![(65_535, 65_535), (1, 65_535)]), vec![(1, 65_535)]);
    assert_eq!(merged(Vec::new()), Vec::new());
}
