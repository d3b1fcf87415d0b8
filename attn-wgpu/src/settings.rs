//! Measured settings: how kernels split their work on a device.
//!
//! They ship with the crate. `cargo xtask tune` measures them on another device and writes a file,
//! which `ATTN_TUNE=FILE` or [`crate::GpuBuilder::settings`] loads. Nothing is measured in a call.

use std::fmt;
use std::path::Path;

use attn_core::Error;
use serde::{Deserialize, Serialize};

/// Kinds of attention kernels that differ in what they keep in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KernelKind {
    /// Many queries.
    Forward,
    /// Few queries, the keys split over workgroups.
    Decode,
    /// Gradients, column sums and probabilities.
    Backward,
}

impl KernelKind {
    /// All kinds.
    pub const ALL: [KernelKind; 3] =
        [KernelKind::Forward, KernelKind::Decode, KernelKind::Backward];

    /// The name in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            KernelKind::Forward => "forward",
            KernelKind::Decode => "decode",
            KernelKind::Backward => "backward",
        }
    }
}

/// How a kernel splits its work. Values beyond what a device can do are lowered to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Elements of the head dimension that one lane should hold.
    pub dim_per_lane: u32,
    /// Lanes that share a row at most; a power of two.
    pub max_lanes: u32,
    /// Rows of a group of lanes at most.
    pub max_rows: u32,
    /// Keys absorbed per step; 1 in backward kernels.
    pub keys: u32,
    /// Invocations in a workgroup.
    pub workgroup: u32,
}

impl Setting {
    /// Checks the ranges that kernels are written for.
    ///
    /// # Errors
    /// [`Error::Config`] naming the value.
    pub fn validate(&self) -> Result<(), Error> {
        let Setting { dim_per_lane, max_lanes, max_rows, keys, workgroup } = *self;
        let ranges = [
            ("dim_per_lane", dim_per_lane, 4, 256),
            ("max_lanes", max_lanes, 1, 128),
            ("max_rows", max_rows, 1, 32),
            ("keys", keys, 1, 8),
            ("workgroup", workgroup, 1, 1024),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(Error::config(name, format!("{least} to {most}"), value));
            }
        }
        if !max_lanes.is_power_of_two() {
            return Err(Error::config("max_lanes", "a power of two", max_lanes));
        }
        Ok(())
    }

    /// What the crate ships. The software driver's come from `cargo xtask tune` on Mesa 22.3.6, those
    /// of GPUs with subgroups from the same on an NVIDIA H100 (driver 580), the only GPU measured so far.
    ///
    /// Software drivers: memory accesses cost many FMAs whatever their pattern, so rows are many; a
    /// workgroup of few lanes wastes least on the diagonal, and one of a single subgroup keeps its
    /// registers across barriers.
    ///
    /// GPUs: registers per lane are few, lanes are many.
    ///
    /// Without subgroups a step has two barriers, so forward kernels take more keys at once.
    fn shipped(kernel: KernelKind, cpu: bool, subgroups: bool, dim: u32) -> Setting {
        let set = |dim_per_lane, max_lanes, max_rows, keys, workgroup| Setting {
            dim_per_lane,
            max_lanes,
            max_rows,
            keys,
            workgroup,
        };
        match (kernel, cpu, subgroups) {
            (KernelKind::Forward, true, true) => set(16, 8, 16, 1, 8),
            (KernelKind::Forward, true, false) => set(16, 16, 4, 4, 16),
            (KernelKind::Forward, false, true) => set(8, 32, 3, 8, if dim > 64 { 128 } else { 64 }),
            (KernelKind::Forward, false, false) => set(16, 16, 4, 4, 64),
            (KernelKind::Decode, true, true) => set(16, 8, 8, 1, 8),
            (KernelKind::Decode, true, false) => set(16, 16, 8, 2, 16),
            (KernelKind::Decode, false, true) => set(8, 32, 8, 4, 128),
            (KernelKind::Decode, false, false) => set(16, 16, 8, 2, 64),
            (KernelKind::Backward, true, true) => set(16, 8, 10, 1, 16),
            (KernelKind::Backward, true, false) => set(16, 16, 4, 1, 16),
            (KernelKind::Backward, false, true) => set(8, 32, 4, 1, 64),
            (KernelKind::Backward, false, false) => set(16, 16, 4, 1, 64),
        }
    }
}

/// A setting and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// The kernel.
    pub kernel: KernelKind,
    /// For devices with subgroups, or for those without.
    pub subgroups: bool,
    /// Largest head dimension that it is for.
    pub max_dim: u32,
    /// The setting.
    pub setting: Setting,
}

/// Settings of a device: measured rules in front of the shipped ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Settings {
    rules: Vec<Rule>,
}

/// Rules of one device, in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRules {
    /// Name of the adapter, as the driver spells it.
    pub adapter: String,
    /// Driver and version that they were measured with.
    pub driver: String,
    /// The rules; the first that fits is taken.
    pub rules: Vec<Rule>,
}

/// A file of measured settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsFile {
    /// Version of the format: 1.
    pub format: u32,
    /// Any number of devices.
    pub devices: Vec<DeviceRules>,
}

impl SettingsFile {
    const FORMAT: u32 = 1;

    /// A file without a device.
    pub fn new() -> Self {
        SettingsFile { format: Self::FORMAT, devices: Vec::new() }
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read or is no such file, or holds a setting out of range.
    pub fn load(path: &Path) -> Result<SettingsFile, Error> {
        let failed = |reason: String| Error::file(path, reason);
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let file: SettingsFile =
            serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
        if file.format != Self::FORMAT {
            return Err(failed(format!("format {}, expected {}", file.format, Self::FORMAT)));
        }
        for rule in file.devices.iter().flat_map(|device| &device.rules) {
            rule.setting.validate().map_err(|error| failed(error.to_string()))?;
        }
        Ok(file)
    }

    /// The text of the file.
    pub fn to_text(&self) -> String {
        // Plain data of numbers and strings: nothing in it can fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Settings of the adapter of this name: the shipped ones if the file does not know it.
    pub fn settings_of(&self, adapter: &str) -> Settings {
        let device = self.devices.iter().find(|device| device.adapter == adapter);
        Settings { rules: device.map_or_else(Vec::new, |device| device.rules.clone()) }
    }
}

impl Default for SettingsFile {
    fn default() -> Self {
        Self::new()
    }
}

impl Settings {
    /// Measured rules, tried in this order, in front of the shipped settings.
    ///
    /// # Errors
    /// [`Error::Config`] for a setting out of range.
    pub fn new(rules: Vec<Rule>) -> Result<Settings, Error> {
        rules.iter().try_for_each(|rule| rule.setting.validate())?;
        Ok(Settings { rules })
    }

    /// Whether nothing but the shipped settings is in force.
    pub fn are_shipped(&self) -> bool {
        self.rules.is_empty()
    }

    /// The setting of a kernel for head dimension `dim`.
    pub fn of(&self, kernel: KernelKind, cpu: bool, subgroups: bool, dim: u32) -> Setting {
        let fits = |rule: &&Rule| {
            rule.kernel == kernel && rule.subgroups == subgroups && dim <= rule.max_dim
        };
        let measured = self.rules.iter().find(fits).map(|rule| rule.setting);
        measured.unwrap_or_else(|| Setting::shipped(kernel, cpu, subgroups, dim))
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setting { dim_per_lane, max_lanes, max_rows, keys, workgroup } = self;
        write!(
            f,
            "{dim_per_lane} elements a lane, at most {max_lanes} lanes and {max_rows} rows, {keys} keys a step, workgroup {workgroup}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(max_dim: u32, workgroup: u32) -> Rule {
        let setting = Setting::shipped(KernelKind::Forward, true, true, 64);
        let setting = Setting { workgroup, ..setting };
        Rule { kernel: KernelKind::Forward, subgroups: true, max_dim, setting }
    }

    #[test]
    fn the_first_rule_that_fits_is_taken() {
        let settings = Settings::new(vec![rule(64, 24), rule(128, 48)]).unwrap();
        let workgroup =
            |kernel, subgroups, dim| settings.of(kernel, true, subgroups, dim).workgroup;
        let of = |dim| workgroup(KernelKind::Forward, true, dim);
        let shipped = Setting::shipped(KernelKind::Forward, true, true, 64).workgroup;
        assert_eq!([of(16), of(64), of(80), of(129)], [24, 24, 48, shipped]);
        // Other kernels, and devices without subgroups, keep what ships.
        assert_eq!(workgroup(KernelKind::Decode, true, 64), 8);
        assert_eq!(workgroup(KernelKind::Forward, false, 64), 16);
    }

    #[test]
    fn a_file_comes_back_and_knows_its_devices() {
        let (name, driver) = ("some device".to_string(), "driver 1".to_string());
        let device = DeviceRules { adapter: name.clone(), driver, rules: vec![rule(64, 24)] };
        let file = SettingsFile { devices: vec![device], ..SettingsFile::new() };
        let path = std::env::temp_dir().join(format!("attn-settings-{}.json", std::process::id()));
        std::fs::write(&path, file.to_text()).unwrap();
        let loaded = SettingsFile::load(&path);
        std::fs::remove_file(&path).unwrap();
        let loaded = loaded.unwrap();
        assert_eq!(loaded, file);
        assert!(!loaded.settings_of(&name).are_shipped());
        assert!(loaded.settings_of("another device").are_shipped());
    }

    #[test]
    fn settings_out_of_range_are_errors() {
        let good = rule(64, 24).setting;
        assert_eq!(good.validate(), Ok(()));
        let bad = [
            (Setting { dim_per_lane: 0, ..good }, "dim_per_lane"),
            (Setting { max_lanes: 3, ..good }, "max_lanes"),
            (Setting { max_rows: 0, ..good }, "max_rows"),
            (Setting { keys: 9, ..good }, "keys"),
            (Setting { workgroup: 2048, ..good }, "workgroup"),
        ];
        for (setting, name) in bad {
            let error = setting.validate().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
