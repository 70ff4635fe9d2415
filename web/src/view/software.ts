/** Whether the browser draws without a graphics card. */

const RASTERISERS = /swiftshader|llvmpipe|softpipe|software|basic render/i;

/** Return true where drawing is the processor's work too, by the name of what draws. */
export function drawsInSoftware(): boolean {
  const gl = document.createElement("canvas").getContext("webgl2");
  if (!gl) return false;
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  const name = String(gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return RASTERISERS.test(name);
}
