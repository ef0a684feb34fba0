/** Shows a segment field by field with offsets: for people, and for the golden files. */
import { RecordHeader, isRecordHeader, recordBytes } from '../../core/log/record.ts';
import { PayloadWalker } from '../../core/log/payload.ts';
import { SEGMENT_BLOCK_BYTES, decodeSegmentBlock, saltOf } from '../../core/log/segment.ts';

const KINDS = ['', 'COMMIT', 'WATERMARK', 'PAD', 'SEAL', 'CLEAN'];
const OPERATIONS = ['', 'put', 'delete', 'update', 'deleteRange', 'attach'];

export function printSegment(bytes: Uint8Array): string {
  const lines: string[] = [];
  const { header } = decodeSegmentBlock(bytes.subarray(0, SEGMENT_BLOCK_BYTES), 'segment');
  if (header === undefined) return 'no header\n';
  for (const [field, value] of Object.entries(header)) {
    const text = value instanceof Uint8Array ? Buffer.from(value).toString('hex') : String(value);
    lines.push(`header.${field} ${text}`);
  }
  const salt = saltOf(header.logId, header.seq);
  lines.push(`header.salt ${salt}`);
  const record = new RecordHeader();
  let at = SEGMENT_BLOCK_BYTES;
  while (at + 48 <= bytes.length && isRecordHeader(bytes, at, salt, at)) {
    record.decode(bytes, at, header.seq, at);
    lines.push(`${at} record ${KINDS[record.kind] ?? record.kind}`);
    for (const [field, value] of Object.entries(record)) {
      if (field !== 'seq' && field !== 'position' && field !== 'kind') {
        lines.push(`${at}   ${field} ${String(value)}`);
      }
    }
    lines.push(`${at}   claim ${record.claim}, chain after ${record.chain}`);
    const payloadAt = at + 48;
    if (record.kind === 1) lines.push(...printPayload(bytes, payloadAt, record.txCount));
    else if (record.payloadLen > 0) {
      const payload = Buffer.from(bytes.subarray(payloadAt, payloadAt + record.payloadLen));
      lines.push(`${payloadAt}   ${payload.toString('hex')}`);
    }
    at += recordBytes(record.payloadLen);
  }
  lines.push(`${at} end of records, ${bytes.length} bytes in all`);
  return lines.join('\n') + '\n';
}

function printPayload(bytes: Uint8Array, at: number, txCount: number): string[] {
  const lines: string[] = [];
  const walker = new PayloadWalker();
  walker.start(bytes, at, txCount);
  while (walker.nextTransaction()) {
    lines.push(`${at}   transaction ${walker.txIndex}: ${walker.operationCount} operations`);
    while (walker.nextOperation()) {
      const text = (from: number, length: number): string =>
        JSON.stringify(Buffer.from(bytes.subarray(from, from + length)).toString('latin1'));
      lines.push(
        `${walker.opOffset}     ${OPERATIONS[walker.kind]} in ${walker.collection}, ` +
          `diff ${walker.diff}, key ${text(walker.keyOffset, walker.keyBytes)}, ` +
          `value ${text(walker.valueOffset, walker.valueBytes)}`,
      );
    }
  }
  return lines;
}
