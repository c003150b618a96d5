use super::*;

const ID_1: &str = "00000000000001";
const ID_2: &str = "00000000000002";
const ID_3: &str = "00000000000003";

#[test]
fn an_app_lists_its_started_machines_only() {
    check("web.internal", Kind::Aaaa, &addresses(&[1, 3]));
    check("global.web.internal.", Kind::Aaaa, &addresses(&[1, 3]));
    check("WEB.Internal", Kind::Aaaa, &addresses(&[1, 3]));
    check("lcl.web.internal", Kind::Aaaa, &addresses(&[1]));
    check("ams.web.internal", Kind::Aaaa, &addresses(&[3]));
    check("worker.process.web.internal", Kind::Aaaa, &addresses(&[3]));
    check("blue.color.kv._metadata.web.internal", Kind::Aaaa, &addresses(&[3]));
    check(&format!("{ID_1}.vm.web.internal"), Kind::Aaaa, &addresses(&[1]));
}

#[test]
fn known_names_without_anything_running_are_empty_and_unknown_ones_do_not_exist() {
    check(&format!("{ID_2}.vm.web.internal"), Kind::Aaaa, &Answer::NoData);
    check("web.internal", Kind::Other, &Answer::NoData);
    check("web.internal", Kind::Txt, &Answer::NoData);
    check("vms.web.internal", Kind::Aaaa, &Answer::NoData);
    for name in [
        "nobody.internal",
        "fra.web.internal",
        "0000000000000f.vm.web.internal",
        "x.vm.web.internal",
        "none.process.web.internal",
        "red.color.kv._metadata.web.internal",
        "a.b.c.web.internal",
        "topx.nearest.of.web.internal",
        "_nope.internal",
        "x.web.flycast",
        "nobody.flycast",
        "not_a_name.flycast",
        "3.0.0.0.a.a.d.f.ip6.arpa",
    ] {
        check(name, Kind::Aaaa, &Answer::NoName);
    }
}

#[test]
fn texts_list_machines_regions_and_apps() {
    let txt = |text: &str| Answer::Records(vec![Record::Txt(text.to_owned())]);
    check("vms.web.internal", Kind::Txt, &txt(&format!("{ID_1} lcl,{ID_3} ams")));
    let all = format!("{ID_1} lcl,{ID_2} lcl,{ID_3} ams");
    check("all.vms.web.internal", Kind::Txt, &txt(&all));
    check("regions.web.internal", Kind::Txt, &txt("ams,lcl"));
    check("_apps.internal", Kind::Txt, &txt("web"));
    let one =
        |id: &str, n: u16, region: &str| format!("id={id},app=web,ip={},region={region}", ip(n));
    let instances = [one(ID_1, 1, "lcl"), one(ID_3, 3, "ams")].join(";");
    check("_instances.internal", Kind::Txt, &txt(&instances));
}

#[test]
fn the_nearest_come_first_and_in_order() {
    let ordered = |ns: &[u16]| Answer::Records(ns.iter().map(|&n| Record::Aaaa(ip(n))).collect());
    let ask = |name| answer(name, Kind::Aaaa, asker("ams"), &directory());
    assert_eq!(ask("top2.nearest.of.web.internal"), ordered(&[3, 1]));
    assert_eq!(ask("top1.nearest.of.web.internal"), ordered(&[3]));
    assert_eq!(ask("top0.nearest.of.web.internal"), Answer::NoData);
}

#[test]
fn flycast_answers_whatever_the_machines_do_and_only_where_it_may_be_called() {
    let flycast = Answer::Records(vec![Record::Aaaa("fdaa:0:1:0:1::2".parse().expect("valid"))]);
    check("web.flycast", Kind::Aaaa, &flycast);
    check("web.flycast", Kind::Any, &flycast);
    check("web.flycast", Kind::Other, &Answer::NoData);
    let other = Asker { network: NetworkId::new(9).expect("not zero"), ..asker("lcl") };
    for name in ["web.flycast", "web.internal", "all.vms.web.internal"] {
        assert_eq!(answer(name, Kind::Any, other, &directory()), Answer::NoName, "{name}");
    }
}

#[test]
fn the_rest_of_the_world_is_forwarded_and_our_zones_never() {
    check("example.com", Kind::Aaaa, &Answer::Forward);
    check("flycast.example.com", Kind::Aaaa, &Answer::Forward);
    check("", Kind::Aaaa, &Answer::Forward);
    check("internal", Kind::Aaaa, &Answer::NoData);
    check("flycast", Kind::Aaaa, &Answer::NoData);
    check(
        "_api.internal",
        Kind::Aaaa,
        &Answer::Records(vec![Record::Aaaa("fdaa:0:1::3".parse().expect("valid"))]),
    );
}

#[test]
fn many_addresses_are_cut_for_udp_and_shuffled() {
    let mut directory = directory();
    let zone = directory.networks.get_mut(&asker("lcl").network).expect("made below");
    let app: AppName = "web".parse().expect("valid");
    zone.apps.insert(app, (1..=40).map(|n| member(n, "lcl", Presence::Started)).collect());
    let ask = |transport, random| {
        let asker = Asker { transport, random, ..asker("lcl") };
        match answer("web.internal", Kind::Aaaa, asker, &directory) {
            Answer::Records(records) => records,
            other => panic!("no records but {other:?}"),
        }
    };
    assert_eq!(ask(Transport::Udp, 1).len(), UDP_ADDRESSES_MAX);
    assert_eq!(ask(Transport::Tcp, 1).len(), 40);
    assert_ne!(ask(Transport::Tcp, 1), ask(Transport::Tcp, 2));
}

fn check(name: &str, kind: Kind, wanted: &Answer) {
    let mut seen = answer(name, kind, asker("lcl"), &directory());
    if let Answer::Records(records) = &mut seen {
        records.sort_by_key(|r| format!("{r:?}"));
    }
    assert_eq!(&seen, wanted, "{name} {kind:?}");
}

fn addresses(numbers: &[u16]) -> Answer {
    Answer::Records(numbers.iter().map(|&n| Record::Aaaa(ip(n))).collect())
}

fn ip(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfdaa, 0, 1, 0xa7b, 1, 0, n, 2)
}

fn asker(region: &str) -> Asker {
    Asker {
        network: NetworkId::new(1).expect("not zero"),
        region: region.parse().expect("valid"),
        transport: Transport::Udp,
        random: 7,
    }
}

fn member(n: u16, region: &str, presence: Presence) -> Member {
    Member {
        id: MachineId::from_low_bits(n.into()),
        region: region.parse().expect("valid"),
        group: group("app"),
        private_ip: ip(n),
        presence,
        metadata: Arc::default(),
    }
}

fn group(name: &str) -> Option<Arc<ProcessGroup>> {
    name.parse().ok().map(Arc::new)
}

fn directory() -> Directory {
    let app: AppName = "web".parse().expect("valid");
    let mut third = member(3, "ams", Presence::Started);
    third.group = group("Worker");
    third.metadata = [("Color".to_owned(), "Blue".to_owned())].into();
    let members =
        vec![member(1, "lcl", Presence::Started), member(2, "lcl", Presence::Asleep), third];
    let flycast = BTreeSet::from(["fdaa:0:1:0:1::2".parse().expect("valid")]);
    let zone = Zone {
        apps: BTreeMap::from([(app.clone(), members.into())]),
        flycast: BTreeMap::from([(app, flycast)]),
    };
    let other = Zone::default();
    let id = |n| NetworkId::new(n).expect("not zero");
    Directory { networks: BTreeMap::from([(id(1), zone), (id(9), other)]) }
}
