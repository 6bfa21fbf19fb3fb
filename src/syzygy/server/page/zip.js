// Several files as one: a ZIP archive without compression, as images are compressed already.

const TABLE = Uint32Array.from({ length: 256 }, (_, i) => {
  for (let bit = 0; bit < 8; bit++) i = i & 1 ? 0xedb88320 ^ (i >>> 1) : i >>> 1;
  return i;
});
const UTF8_NAMES = 0x800;
const FIRST_DAY = 0x21; // 1980-01-01: the archive depends on its files only

function crc32(bytes) {
  let value = ~0;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}

/** Numbers as [value, bytes] in little-endian order. */
function packed(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, size]) => sum + size, 0)));
  let at = 0;
  for (const [value, size] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return view.buffer;
}

/** The archive of [name, blob] pairs. Equal names get numbers. */
export async function zipped(files) {
  const parts = [];
  const directory = [];
  const names = new Set();
  let offset = 0;
  for (const [given, blob] of files) {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const name = new TextEncoder().encode(unique(given, names));
    const sizes = [[bytes.length, 4], [bytes.length, 4], [name.length, 2]];
    const about = [[20, 2], [UTF8_NAMES, 2], [0, 2], [0, 2], [FIRST_DAY, 2], [crc32(bytes), 4], ...sizes];
    parts.push(packed([0x04034b50, 4], ...about, [0, 2]), name, bytes);
    directory.push(packed([0x02014b50, 4], [20, 2], ...about, [0, 2], [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), name);
    offset += 30 + name.length + bytes.length;
  }
  const size = directory.reduce((sum, one) => sum + one.byteLength, 0);
  const count = files.length;
  const end = packed([0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [size, 4], [offset, 4], [0, 2]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

function unique(given, names) {
  const [, stem, kind] = /^(.*?)(\.\w+)?$/.exec(given);
  let name = given;
  for (let number = 2; names.has(name); number++) name = `${stem}-${number}${kind ?? ""}`;
  names.add(name);
  return name;
}
