/** The floor: a grid without end that fades into the sky. */

import * as THREE from "three";
import type { Theme } from "./theme";

const EXTENT = 120;

/** A floor whose lines stay in place while it goes along with the camera. */
export class Ground {
  readonly group = new THREE.Group();
  private readonly uniforms = {
    line: { value: new THREE.Color() },
    ground: { value: new THREE.Color() },
    cell: { value: 1 },
    fade: { value: 12 },
    centre: { value: new THREE.Vector3() },
  };
  private readonly shade: THREE.Mesh;

  constructor() {
    const plane = new THREE.PlaneGeometry(EXTENT, EXTENT);
    const grid = new THREE.ShaderMaterial({
      uniforms: this.uniforms,
      vertexShader: VERTEX,
      fragmentShader: FRAGMENT,
      transparent: true,
      depthWrite: false,
    });
    const lines = new THREE.Mesh(plane, grid);
    lines.renderOrder = -2;
    const shadow = new THREE.ShadowMaterial({ opacity: 0.32, transparent: true });
    this.shade = new THREE.Mesh(plane, shadow);
    this.shade.receiveShadow = true;
    this.shade.renderOrder = -1;
    this.shade.position.z = 1e-3;
    this.group.add(lines, this.shade);
  }

  /** Set whether shadows fall on it; without them, drawing their place is work for nothing. */
  set shadows(on: boolean) {
    this.shade.visible = on;
  }

  /** Take on a theme's colours. */
  paint(theme: Theme): void {
    this.uniforms.line.value.setHex(theme.line);
    this.uniforms.ground.value.setHex(theme.ground);
  }

  /** Set the size of a cell and how far the floor is seen, in metres. */
  scale(cell: number, fade: number): void {
    this.uniforms.cell.value = cell;
    this.uniforms.fade.value = fade;
  }

  /** Go to below this point. */
  centre(point: THREE.Vector3): void {
    this.group.position.x = point.x;
    this.group.position.y = point.y;
    this.uniforms.centre.value.copy(point);
  }
}

const VERTEX = `
varying vec3 place;
void main() {
  vec4 world = modelMatrix * vec4(position, 1.0);
  place = world.xyz;
  gl_Position = projectionMatrix * viewMatrix * world;
}`;

const FRAGMENT = `
uniform vec3 line, ground, centre;
uniform float cell, fade;
varying vec3 place;
float lines(vec2 at, float width) {
  vec2 near = abs(fract(at - 0.5) - 0.5);
  vec2 step = fwidth(at);
  vec2 on = 1.0 - smoothstep(step * width, step * (width + 1.0), near);
  return max(on.x, on.y) * (1.0 - smoothstep(0.3, 1.0, max(step.x, step.y)));
}
void main() {
  float far = length(place.xy - centre.xy) / fade;
  float seen = 1.0 - smoothstep(0.25, 1.0, far);
  vec2 at = place.xy / cell;
  float checker = mod(floor(at.x) + floor(at.y), 2.0);
  float on = max(0.55 * lines(at * 4.0, 0.2), lines(at, 0.8));
  vec3 colour = mix(mix(ground, line, 0.18 * checker), line, on);
  gl_FragColor = vec4(colour, seen);
  #include <colorspace_fragment>
}`;
