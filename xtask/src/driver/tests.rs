use std::collections::BTreeMap;

use super::*;

struct Fake(BTreeMap<String, String>);

impl Files for Fake {
    fn list(&self, dir: &str) -> Vec<String> {
        let prefix = format!("{dir}/");
        let below = self.0.keys().filter_map(|path| path.strip_prefix(&prefix));
        below.filter(|name| !name.contains('/')).map(String::from).collect()
    }
    fn read(&self, path: &str) -> Option<String> {
        self.0.get(path).cloned()
    }
    fn exists(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

const LOADER: &str = "/usr/lib/x86_64-linux-gnu/libvulkan.so.1";
const LVP: &str = "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json";

fn icd(library: &str) -> String {
    format!(r#"{{"ICD": {{"api_version": "1.3", "library_path": "{library}"}}}}"#)
}

fn look(os: &str, vars: &[(&str, &str)], files: &[(&str, String)]) -> Found {
    let files = files.iter().map(|(path, text)| (path.to_string(), text.clone()));
    let var = |name: &str| {
        let found = vars.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value.to_string())
    };
    detect(os, "x86_64", &var, &Fake(files.collect()))
}

#[test]
fn debian_with_mesa() {
    let library = "/usr/lib/x86_64-linux-gnu/libvulkan_lvp.so";
    let mut files = vec![(LOADER, String::new()), (library, String::new()), (LVP, icd(library))];
    let found = look("linux", &[], &files);
    assert_eq!(found.loader.as_deref(), Some(LOADER));
    assert_eq!(found.drivers, [LVP]);
    assert!(found.usable() && found.software_only());
    files.push(("/dev/dri/renderD128", String::new()));
    assert!(!look("linux", &[], &files).software_only());
}

#[test]
fn loader_without_driver_and_driver_without_loader() {
    let found = look("linux", &[], &[(LOADER, String::new())]);
    assert!(found.loader.is_some() && !found.usable());
    let found = look("linux", &[], &[("/lib/x.so", String::new()), (LVP, icd("x.so"))]);
    assert!(found.loader.is_none() && !found.usable() && found.drivers == [LVP]);
    assert!(!look("linux", &[], &[]).usable());
}

#[test]
fn broken_manifests_are_named() {
    let files = [
        (LOADER, String::new()),
        ("/etc/vulkan/icd.d/a.json", icd("/gone.so")),
        ("/etc/vulkan/icd.d/b.json", "{".into()),
        ("/etc/vulkan/icd.d/c.json", "{}".into()),
    ];
    let found = look("linux", &[], &files);
    assert!(!found.usable());
    let why: Vec<_> = found.broken.iter().map(|(_, why)| why.as_str()).collect();
    assert_eq!(why[0], "/gone.so is missing");
    assert!(why[1].starts_with("is not JSON"));
    assert_eq!(why[2], "names no library_path");
}

#[test]
fn variables_replace_the_search() {
    let files = [
        (LOADER, String::new()),
        ("/x/lvp.so", String::new()),
        ("/x/icd/own.json", icd("../lvp.so")),
        ("/x/icd/../lvp.so", String::new()),
        (LVP, icd("/x/lvp.so")),
    ];
    let old = ("VK_ICD_FILENAMES", LVP);
    assert_eq!(look("linux", &[old], &files).drivers, [LVP]);
    let new = ("VK_DRIVER_FILES", "/x/icd/own.json");
    assert_eq!(look("linux", &[old, new], &files).drivers, ["/x/icd/own.json"]);
    let dir = ("VK_DRIVER_FILES", "/x/icd");
    assert_eq!(look("linux", &[dir], &files).drivers, ["/x/icd/own.json"]);
    let gone = ("VK_DRIVER_FILES", "/nowhere.json");
    let found = look("linux", &[gone], &files);
    assert!(!found.usable());
    assert_eq!(found.broken[0].1, "cannot be read");
}

#[test]
fn user_folders_and_linker_settings() {
    let files = [
        ("/opt/vk/libvulkan.so.1", String::new()),
        ("/etc/ld.so.conf.d/vk.conf", "# comment\n/opt/drivers\n".into()),
        ("/opt/drivers/mine.so", String::new()),
        ("/home/u/.local/share/vulkan/icd.d/mine.json", icd("mine.so")),
    ];
    let vars = [("HOME", "/home/u"), ("LD_LIBRARY_PATH", "/opt/vk")];
    let found = look("linux", &vars, &files);
    assert_eq!(found.loader.as_deref(), Some("/opt/vk/libvulkan.so.1"));
    assert!(found.usable() && !found.software_only());
}

#[test]
fn systems_that_need_no_vulkan() {
    for os in ["macos", "windows"] {
        let found = look(os, &[], &[]);
        assert!(found.usable() && !found.software_only());
    }
}
