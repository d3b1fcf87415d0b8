// Compiles WGSL with Tint, without a device.
//
// usage: node check.mjs FOLDER [INPUT]
// FOLDER holds node_modules/webgpu; each line of INPUT is {"id": number, "wgsl": text}. Prints a line
// {"id", "messages": [{"type", "line", "message"}]} for each text that Tint has something to say about, and
// {"checked": count} at the end. Without INPUT it shows that Tint works here, or fails.
import { createReadStream } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const [folder, input] = process.argv.slice(2);
const entry = join(folder, 'node_modules', 'webgpu', 'index.js');
const { create } = await import(pathToFileURL(entry));
// The object must outlive everything that comes from it.
const gpu = create(['backend=null']);
const adapter = await gpu.requestAdapter();
const device = await adapter.requestDevice({ requiredFeatures: ['subgroups'] });

let checked = 0;
const lines = input ? createInterface({ input: createReadStream(input) }) : [];
for await (const line of lines) {
  const { id, wgsl } = JSON.parse(line);
  device.pushErrorScope('validation');
  const shader = device.createShaderModule({ code: wgsl });
  const info = await shader.getCompilationInfo();
  const error = await device.popErrorScope();
  const messages = info.messages.map(({ type, lineNum, message }) => ({ type, line: lineNum, message }));
  // An error that is not about the text, such as one of its length.
  if (error && messages.length === 0) {
    messages.push({ type: 'error', line: 0, message: error.message });
  }
  if (messages.length > 0) {
    console.log(JSON.stringify({ id, messages }));
  }
  checked += 1;
}
console.log(JSON.stringify({ checked }));
device.destroy();
// Dawn's threads would keep the process alive.
process.exitCode = 0;
setImmediate(() => process.exit());
