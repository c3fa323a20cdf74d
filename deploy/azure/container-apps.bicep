// Aerodrome on Azure Container Apps: an app for each node, and HAProxy in front of them.
//
//   az deployment group create --resource-group copilot --template-file deploy/azure/container-apps.bicep \
//     --parameters @deploy/azure/container-apps.parameters.json
//
// Nodes forward to each other, so each needs an address of its own. Replicas of one app have none, apps do: a node is an
// app with one replica, which the others reach by its name. For the same reason a node is never updated, because the
// replica that goes and the one that comes would have one address; an upgrade makes apps of other names (`release`). The
// stores are yours: Azure Database for PostgreSQL and Azure Managed Redis, in the same virtual network.

@description('Region.')
param location string = resourceGroup().location

@description('Subnet for the environment, delegated to Microsoft.App/environments.')
param subnetId string

@description('Image of Aerodrome.')
param image string

@description('Registry that the image is in.')
param registry string

@description('Resource id of an identity that may pull from the registry.')
param identityId string

@description('Nodes.')
@minValue(1)
@maxValue(9)
param nodes int = 2

@description('What the names of the nodes have of this release: for each upgrade, another one.')
@minLength(1)
@maxLength(12)
param release string = 'a'

@description('Address of the PostgreSQL: postgresql://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full')
@secure()
param stateUrl string

@description('Address of the Redis: rediss://:PASSWORD@HOST:PORT')
@secure()
param coordinationUrl string

@description('Address of the model API.')
param modelUrl string

@description('Key of the model API.')
@secure()
param modelKey string

@description('Model of sessions that name none.')
param model string = 'gpt-4.1'

@description('Workspace of the logs.')
param workspaceName string = 'aerodrome'

var names = [for number in range(1, nodes): 'aerodrome-${release}-${number}']
var servers = [for name in names: '  server ${name} ${name}:8080']
var gateways = [for name in names: '  server ${name} ${name}:4321 port 8080']
// deploy/compose/haproxy.cfg says why each of these is as it is. Names are looked up by the system when HAProxy starts, and
// not by HAProxy itself (`resolvers`), which does not complete them as the system does (`search` in resolv.conf): they would
// lead nowhere after half a minute. An app keeps its address for as long as it is there. Without a node to pass requests
// to, HAProxy is not ready, so that the one before it goes on.
var balancer = join([
  'defaults'
  '  timeout connect 2s'
  '  default-server check inter 1s fall 2 rise 1 init-addr last,libc'
  '  balance leastconn'
  '  option redispatch 1'
  '  retries 3'
  'frontend http'
  '  mode http'
  '  bind :8080'
  '  timeout http-request 30s'
  '  timeout client 1h'
  '  monitor-uri /balancer'
  '  monitor fail if { nbsrv(nodes-http) lt 1 }'
  '  default_backend nodes-http'
  'backend nodes-http'
  '  mode http'
  '  timeout server 1h'
  '  option httpchk'
  '  http-check send meth GET uri /ready ver HTTP/1.1 hdr Host aerodrome'
  '  http-check expect status 200'
  '  http-reuse never'
  join(servers, '\n')
  'frontend gateway'
  '  mode tcp'
  '  bind :4321'
  '  timeout client 24h'
  '  default_backend nodes-gateway'
  'backend nodes-gateway'
  '  mode tcp'
  '  timeout server 24h'
  '  option httpchk'
  '  http-check send meth GET uri /ready ver HTTP/1.1 hdr Host aerodrome'
  '  http-check expect status 200'
  join(gateways, '\n')
  ''
], '\n')

resource workspace 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: workspaceName
  location: location
  properties: {
    retentionInDays: 30
    sku: {
      name: 'PerGB2018'
    }
  }
}

resource environment 'Microsoft.App/managedEnvironments@2024-03-01' = {
  name: 'aerodrome'
  location: location
  properties: {
    vnetConfiguration: {
      infrastructureSubnetId: subnetId
      internal: true
    }
    appLogsConfiguration: {
      destination: 'log-analytics'
      logAnalyticsConfiguration: {
        customerId: workspace.properties.customerId
        sharedKey: workspace.listKeys().primarySharedKey
      }
    }
    workloadProfiles: [
      {
        name: 'nodes'
        workloadProfileType: 'D8'
        minimumCount: 1
        // In an upgrade there are two of each node, and two fill a machine.
        maximumCount: 2 * nodes
      }
      {
        name: 'Consumption'
        workloadProfileType: 'Consumption'
      }
    ]
  }
}

resource node 'Microsoft.App/containerApps@2024-03-01' = [for name in names: {
  name: name
  location: location
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identityId}': {}
    }
  }
  properties: {
    environmentId: environment.id
    workloadProfileName: 'nodes'
    configuration: {
      activeRevisionsMode: 'Single'
      registries: [
        {
          server: registry
          identity: identityId
        }
      ]
      secrets: [
        {
          name: 'state-url'
          value: stateUrl
        }
        {
          name: 'coordination-url'
          value: coordinationUrl
        }
        {
          name: 'provider-key'
          value: modelKey
        }
      ]
      ingress: {
        external: false
        transport: 'tcp'
        targetPort: 4321
        exposedPort: 4321
        additionalPortMappings: [
          {
            external: false
            targetPort: 8080
            exposedPort: 8080
          }
        ]
      }
    }
    template: {
      // The drain: server.drain_delay, server.drain_timeout, and the end of the runtimes.
      terminationGracePeriodSeconds: 600
      scale: {
        minReplicas: 1
        maxReplicas: 1
      }
      containers: [
        {
          name: 'aerodrome'
          image: image
          resources: {
            cpu: json('4')
            memory: '16Gi'
          }
          env: [
            {
              name: 'AERODROME_SERVER__NODE_NAME'
              value: name
            }
            {
              name: 'AERODROME_SERVER__ADVERTISE'
              value: '${name}:4321'
            }
            {
              name: 'AERODROME_SERVER__DRAIN_DELAY'
              value: '5s'
            }
            {
              name: 'AERODROME_SERVER__DRAIN_TIMEOUT'
              value: '540s'
            }
            {
              name: 'AERODROME_STATE__URL'
              value: 'file:/run/secrets/aerodrome/state-url'
            }
            {
              name: 'AERODROME_COORDINATION__URL'
              value: 'file:/run/secrets/aerodrome/coordination-url'
            }
            {
              name: 'AERODROME_PROVIDER__TYPE'
              value: 'azure'
            }
            {
              name: 'AERODROME_PROVIDER__BASE_URL'
              value: modelUrl
            }
            {
              name: 'AERODROME_PROVIDER__API_KEY'
              value: 'file:/run/secrets/aerodrome/provider-key'
            }
            {
              name: 'AERODROME_PROVIDER__MODEL'
              value: model
            }
          ]
          probes: [
            {
              type: 'Startup'
              httpGet: {
                path: '/health'
                port: 8080
              }
              periodSeconds: 5
              failureThreshold: 24
            }
            {
              type: 'Readiness'
              httpGet: {
                path: '/ready'
                port: 8080
              }
              periodSeconds: 5
            }
            {
              type: 'Liveness'
              httpGet: {
                path: '/health'
                port: 8080
              }
              periodSeconds: 10
              failureThreshold: 6
            }
          ]
          volumeMounts: [
            {
              volumeName: 'secrets'
              mountPath: '/run/secrets/aerodrome'
            }
            {
              volumeName: 'data'
              mountPath: '/var/lib/aerodrome'
            }
          ]
        }
      ]
      volumes: [
        {
          name: 'secrets'
          storageType: 'Secret'
        }
        {
          name: 'data'
          storageType: 'EmptyDir'
        }
      ]
    }
  }
}]

resource front 'Microsoft.App/containerApps@2024-03-01' = {
  name: 'aerodrome'
  location: location
  // Their names have to be known.
  dependsOn: [
    node
  ]
  properties: {
    environmentId: environment.id
    workloadProfileName: 'Consumption'
    configuration: {
      activeRevisionsMode: 'Single'
      secrets: [
        {
          name: 'haproxy'
          value: balancer
        }
      ]
      // To the virtual network only. TLS for HTTP is Azure's; the native gateway is TCP.
      ingress: {
        external: true
        transport: 'http'
        targetPort: 8080
        additionalPortMappings: [
          {
            external: true
            targetPort: 4321
            exposedPort: 4321
          }
        ]
      }
    }
    template: {
      // Answers that are under way when its successor has taken over.
      terminationGracePeriodSeconds: 600
      scale: {
        minReplicas: 2
        maxReplicas: 2
      }
      containers: [
        {
          name: 'haproxy'
          image: 'haproxy:2.8-alpine'
          args: [
            'haproxy'
            '-W'
            '-f'
            '/run/haproxy/haproxy'
          ]
          resources: {
            cpu: json('0.5')
            memory: '1Gi'
          }
          probes: [
            {
              type: 'Readiness'
              httpGet: {
                path: '/balancer'
                port: 8080
              }
              periodSeconds: 5
            }
          ]
          volumeMounts: [
            {
              volumeName: 'configuration'
              mountPath: '/run/haproxy'
            }
          ]
        }
      ]
      volumes: [
        {
          name: 'configuration'
          storageType: 'Secret'
        }
      ]
    }
  }
}

@description('Where callers come, inside the virtual network.')
output address string = front.properties.configuration.ingress.fqdn
